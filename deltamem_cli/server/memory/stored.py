"""Which stored conversation a request to the memory's interface means, and whether its key may have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from deltamem_cli.server.conversations.addressing import Address
from deltamem_cli.server.conversations.places import Places, derived
from deltamem_cli.server.problems import Problem, invalid
from deltamem_cli.server.requests.service import bound_profile, service
from deltamem_cli.store import conversations, profiles
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import InvalidName, NotFound, StoreError
from deltamem_cli.store.records import Conversation, Profile

T = TypeVar("T")


def profile_name(request: Request, said: Mapping[str, Any]) -> str:
    """The profile that a request names, else the key's own, else the server's. Raises Problem."""
    return allowed(request, said.get("profile") or bound_profile(request) or service(request).profile, "profile")


def allowed(request: Request, name: str, field: str) -> str:
    """The profile's name, if there can be one of that name and the request's key may have it. Raises Problem."""
    bound = bound_profile(request)
    try:
        name = profiles.check_name(name)
    except InvalidName as error:
        raise Problem(400, f"{error}.", code="invalid_name", param=field) from None
    if bound is not None and name != bound:
        raise Problem(404, f"There is no profile {name} here.", code="not_found", param=field)
    return name


def find(request: Request, said: Mapping[str, Any], store: Store) -> Conversation:
    """The one that `conversation` names (an id, a part of one, or a client's own name), else the profile's last.

    Raises Problem, with the same words for one that is not there and one that the key must not have.
    """
    bound, reference = bound_profile(request), said.get("conversation")
    name = profile_name(request, said)
    if not reference:
        profile = profiles.find(store, name)
        found = conversations.latest(store, profile) if profile else None
        if found is None:
            raise Problem(404, f"Profile {name} has no conversation yet.", code="not_found", param="profile")
        return found
    found = conversations.find(store, reference.lower())
    if found is None or bound not in (None, found.profile):
        _, found = derived(store, Address(reference, said.get("profile") or bound, "goes_on"), name)
    if found:
        return found
    if bound is None:
        try:
            return conversations.get(store, reference)
        except NotFound:
            pass
        except StoreError as error:  # several begin so
            raise invalid(f"{error}.", "conversation") from None
    raise Problem(404, f"There is no conversation {reference[:80]} here.", code="not_found", param="conversation")


async def look(request: Request, work: Callable[[Store], T]) -> T:
    """What `work` reads, in a thread. Raises Problem and DeltamemError."""
    places = service(request).places

    def reading() -> T:
        with Store.read(places.database) as store:
            return work(store)

    return await places.run(reading)


async def read(request: Request, said: Mapping[str, Any], work: Callable[[Store, Conversation], T]) -> T:
    """What `work` reads of the conversation that is meant."""
    return await look(request, lambda store: work(store, find(request, said, store)))


def begun(request: Request, said: Mapping[str, Any], places: Places) -> tuple[Conversation, Profile]:
    """The conversation that is meant, in a thread; a new one where there is none yet or `new` asks for one."""
    name = profile_name(request, said)
    with Store.open(places.database) as store:
        if said.get("new"):
            profile = profiles.find(store, name) or Profile(id=0, name=name)
            return conversations.new(profile), profile
    wanted = said.get("profile") or bound_profile(request)
    return places.find(Address(said.get("conversation") or None, wanted, "goes_on"), name)
