"""Operations on pixels, bit-exact with Pillow: tone, color, blur, geometry, size.

Policies that choose among them are one room up.
"""
