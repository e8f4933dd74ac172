"""Residual blocks of other libraries with a slot for attention where their own class has none.

Each class here is its parent with one line more in ``forward``: ``self.attention``, after the last norm and before
the residual sum. ``inject`` sets ``block.__class__`` to it and ``eject`` sets it back, so that no parameter is renamed,
and since the classes are importable the block can still be pickled, copied, scripted, traced and exported.

One file per library (two for timm), imported only when a block of it is injected. The rest of each ``forward`` repeats
the parent's; the tests hold every one of them bit for bit to the parent.
"""
