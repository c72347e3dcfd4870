"""What runs inside a box: standard library only, sent there as source text by the host.

These modules hold no secrets, no expected values and no other answers. The host imports `values`
and `folder` and runs `launch`; everything else is executed only in a box.
"""
