"""The process that runs user code, under the interpreter of the user's environment.

That interpreter has none of our packages, so everything here imports the standard library
only, and `__main__.py` is started by its path. Modules import each other relatively: in the
worker the package is called `stellwerk_worker`, in the front, which shares the frame format,
`stellwerk_scorer.worker`.
"""
