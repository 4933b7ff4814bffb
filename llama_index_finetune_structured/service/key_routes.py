"""Keys over HTTP, for keys with the scope ``admin``: ``/v1/keys``. The protocol of OpenAI has no such thing."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..errors import ConfigurationError
from ..printable import one_line
from .errors import ApiError, invalid, not_found
from .keys import SCOPES, ApiKey, CurrentKey, Scope, key_store, scoped

__all__ = ["router"]

router = APIRouter(prefix="/v1/keys", tags=["keys"])
AdminKey = Annotated[ApiKey, Depends(scoped("admin"))]
_Limit = Annotated[int, Field(strict=True, gt=0, lt=2**62)]


def _shown_name(name: str) -> str:
    shown = one_line(name).strip()
    if not shown:
        raise ValueError("expected a name that can be seen")
    return shown


class CreateKey(BaseModel):
    """The body of ``POST /v1/keys``. What is left out is as for ``keys add``."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_shown_name)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=10)] = list(SCOPES)
    max_stored_bytes: _Limit | None = None
    max_waiting_jobs: _Limit | None = None


@router.get("")
def list_keys(request: Request, _key: AdminKey) -> dict[str, Any]:
    """All keys, revoked ones too, without their secrets, in the order in which they were made."""
    return {"object": "list", "data": [_described(each) for each in key_store(request).all_keys()]}


@router.post("")
def create_key(request: Request, _key: AdminKey, body: CreateKey) -> dict[str, Any]:
    """Make a key. The reply alone has its secret, under ``key``."""
    store = key_store(request)
    try:
        secret = store.add(
            body.name,
            scopes=list(dict.fromkeys(body.scopes)),
            max_stored_bytes=body.max_stored_bytes,
            max_waiting_jobs=body.max_waiting_jobs,
        )
    except ConfigurationError as error:
        raise invalid(str(error), "name", code="name_taken") from error
    made = store.find(secret)
    if made is None:  # revoked meanwhile
        raise not_found("key", body.name)
    return {**_described(made), "key": secret}


@router.get("/current")
def current(key: CurrentKey) -> dict[str, Any]:
    """The key of the request."""
    return _described(key)


@router.delete("/{key_id}")
def revoke_key(request: Request, key: AdminKey, key_id: str) -> dict[str, Any]:
    """End a key. What was made with it stays."""
    if key_id == key.id:
        raise ApiError(
            400,
            "This is the key of the request: revoke it with another one, or by 'keys revoke'.",
            code="own_key",
        )
    store = key_store(request)
    found = next((each for each in store.all_keys() if each.id == key_id), None)
    if found is None:
        raise not_found("key", key_id)
    store.revoke(found.name)
    return {"id": key_id, "object": "api_key", "deleted": True}


def _described(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "created_at": key.created_at,
        "scopes": list(key.scopes),
        "max_stored_bytes": key.max_stored_bytes,
        "max_waiting_jobs": key.max_waiting_jobs,
        "revoked": key.revoked,
    }
