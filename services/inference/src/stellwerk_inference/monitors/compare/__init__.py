"""The comparison of a check, in a process of its own that has no rights but some URLs.

Reading and comparing would hold up the service, and what is read comes from users. Nothing here
imports the platform: the process starts with the standard library, NumPy and SciPy.
"""
