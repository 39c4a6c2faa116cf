"""The four real servers. Each module finds its program, writes its configuration, and sets it up once.

Every module has the same three functions: `find` (the program), `specify` (folders, configuration and
command), and `initialise` (what is done once it answers; safe to repeat).
"""
