"""Readable run ids, `amber-fox-k3m9x2`: easy to say, and unique by their random end."""

import secrets

_ADJECTIVES = """amber ample autumn azure bold brave brief bright brisk bronze calm candid clear clever coral
crisp dapper deep eager early earnest even fair fleet fond fresh gentle glad golden grand green happy hardy
honest icy ivory jolly keen kind late level light lively lucky lunar mellow merry mild modest neat nimble
noble olive patient placid plain polite proud quick quiet rapid ready rosy round royal sage scarlet sharp
silent silver sleek smooth snowy solar solid spry steady still sunny
swift tidy tranquil true upbeat vivid warm wise witty young zesty"""
_NOUNS = """acorn arrow aspen badger bay beacon bear beaver birch bison brook canyon cedar cliff cloud comet
condor coral crane creek dawn deer delta dove dune eagle elk elm ember falcon fern field finch fjord flint
forest fox gale garden glacier grove gull harbor hare hawk hazel heron hill island ivy jay juniper kestrel
lagoon lake lantern lark leaf lily lynx maple marsh meadow moon moss mountain oak ocean orca otter owl pebble
pine plover pond poppy prairie quail rain raven reef ridge river robin sable salmon sparrow spruce star stone
stork summit swan thrush tide trail tulip valley violet walnut wave willow wolf wren"""
# Base32 after Crockford: no letter that can be taken for a digit.
_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"


def run_id() -> str:
    """A new id; 30 random bits besides the words, and whoever stores it checks that it is free."""
    tail = "".join(secrets.choice(_LETTERS) for _ in range(6))
    return f"{secrets.choice(_ADJECTIVES.split())}-{secrets.choice(_NOUNS.split())}-{tail}"
