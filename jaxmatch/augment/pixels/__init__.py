"""Operations on pixels, bit-exact with Pillow: tone, color, blur, geometry, size.

The policies that choose among them are in the package above.
"""
