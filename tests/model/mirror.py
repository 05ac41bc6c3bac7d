"""The same with the hosts' names exchanged.

No step asks which host it is, so of two states that are one another's mirror image one needs to
be searched: whatever happens from the one happens, mirrored, from the other.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import msgspec

from coordinator.model import Claim, NameValue, decode, encode
from tests.model.parts import HOSTS, KEYS, NAME, Cell, Cluster, Late, Mind, Part, Place, Recipe

if TYPE_CHECKING:
    from coordinator.store import KeyValue

__all__ = ["mirrored", "mirrored_cluster"]


def mirrored_cluster(cluster: Cluster) -> Cluster:
    """A cluster with its hosts exchanged."""
    return cluster._replace(hosts=cluster.hosts[::-1], sessions=cluster.sessions[::-1])


def mirrored(part: Part) -> Part:
    """A name with its hosts exchanged."""
    first, second = part.places
    late = tuple(sorted((_late(x) for x in part.late), key=repr))
    then = part.then and _cell(part.then)
    return Part(_cell(part.cell), (_place(second), _place(first)), late, then, part.same)


@cache
def _cell(cell: Cell) -> Cell:
    first, second = cell.claims
    return Cell(cell.name and _name(cell.name), (_claim_key(second, 0), _claim_key(first, 1)))


def _name(kv: KeyValue) -> KeyValue:
    value = decode(kv, NameValue)
    assert isinstance(value, NameValue)
    if value.host is None:
        return kv
    other = HOSTS[1 - HOSTS.index(value.host)]
    return msgspec.structs.replace(kv, value=encode(msgspec.structs.replace(value, host=other)))


def _claim_key(kv: KeyValue | None, index: int) -> KeyValue | None:
    return kv and msgspec.structs.replace(kv, key=KEYS.claim(HOSTS[index], NAME))


@cache
def _place(place: Place) -> Place:
    first, second = (mind and _mind(mind) for mind in place.minds)
    journal = place.journal and (_claim(place.journal[0]), place.journal[1])
    lost = place.lost and _claim(place.lost)
    return place._replace(minds=(first, second), journal=journal, lost=lost)


def _mind(mind: Mind) -> Mind:
    known = mind.known and _claim(mind.known)
    return mind._replace(known=known, sent=mind.sent and _recipe(mind.sent))


def _claim(claim: Claim) -> Claim:
    return msgspec.structs.replace(claim, host=HOSTS[1 - HOSTS.index(claim.host)])


def _recipe(recipe: Recipe) -> Recipe:
    claim = recipe.claim and _claim(recipe.claim)
    # A reservation without a host is for neither.
    host = recipe.host if recipe.wish == "hold" else 1 - recipe.host
    return recipe._replace(claim=claim, host=host)


def _late(late: Late) -> Late:
    return late._replace(recipe=_recipe(late.recipe))
