"""What all interfaces share: the places, the model's name, and who may do what."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from deltamem_cli.server.conversations import addressing
from deltamem_cli.server.conversations.places import Places
from deltamem_cli.server.problems import Problem, invalid
from deltamem_cli.store import profiles
from deltamem_cli.store.database import Store


@dataclass
class Service:
    """model: the name that clients call it by; aliases: others that mean it too."""

    places: Places
    model: str
    profile: str
    created: int  # seconds since 1970
    aliases: frozenset[str] = frozenset()

    def named(self, name: object) -> str | None:
        """The profile that a model's name tells, if any. Raises Problem for a model that is not served."""
        if not isinstance(name, str):
            raise invalid("model must be a text.", "model")
        model, profile = addressing.model_and_profile(name)
        if model not in (self.model, *self.aliases):
            raise Problem(
                404, f"There is no model {model[:100]} here: use {self.model}.", code="model_not_found", param="model"
            )
        return profile


def service(request: Request) -> Service:
    """That of the application that got the request."""
    found: Service = request.app.state.service
    return found


def bound_profile(request: Request) -> str | None:
    """The profile that the request's API key is bound to; None: it may use all."""
    return getattr(request.state, "profile", None)


async def model_names(request: Request) -> list[str]:
    """The model's, and with each profile that the request may use."""
    shared, bound = service(request), bound_profile(request)

    def names() -> list[str]:
        with Store.read(shared.places.database) as store:
            return [profile.name for profile in profiles.all_of(store) if bound in (None, profile.name)]

    return [shared.model, *(f"{shared.model}@{name}" for name in await shared.places.run(names))]
