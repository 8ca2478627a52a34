"""Networks, and what lets algorithms call them on trees of views."""
