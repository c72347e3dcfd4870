"""The collection that ties an archive and its elites together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from huggingface_hub import Collection

from cqd_hub.hub.client import Hub
from cqd_hub.hub.commit import Kind

_TITLE = 59  # characters that the Hub allows


class Item(NamedTuple):
    """A member of a collection."""

    repo: str
    kind: Kind
    note: str


def title_of(archive: str) -> str:
    """What a collection is called: by it the next push finds it."""
    return archive.partition("/")[2][:_TITLE]


def find_collection(hub: Hub, archive: str) -> Collection | None:
    """The collection of an archive, if there is one."""
    owner, title = archive.partition("/")[0], title_of(archive)

    def ask() -> Collection | None:
        for one in hub.api.list_collections(owner=owner):
            if one.title == title and one.slug.startswith(f"{owner}/"):
                return hub.api.get_collection(one.slug)  # the list leaves items out
        return None

    return hub.ask(f"collections of {owner}", ask)


def differing(found: Collection | None, items: Sequence[Item]) -> list[Item]:
    """Those that the collection lacks, or has with another note."""
    known = {} if found is None else {(i.item_id, i.item_type): i.note for i in found.items}
    return [item for item in items if known.get((item.repo, item.kind)) != item.note]


def update_collection(
    hub: Hub, archive: str, items: Sequence[Item], *, public: bool
) -> tuple[str, bool]:
    """Create what is missing; never takes anything away.

    Returns:
        The collection's slug, and whether something was changed.
    """
    found = find_collection(hub, archive)
    owner, title = archive.partition("/")[0], title_of(archive)
    changed = found is None
    if found is None:
        found = hub.ask(
            f"the collection {title}",
            lambda: hub.api.create_collection(
                title,
                namespace=owner,
                description=f"An evolved archive and its elites: {archive}"[:150],
                private=not public,
                exists_ok=True,
            ),
        )
    slug = found.slug
    known = {(item.item_id, item.item_type): item for item in found.items}
    for item in differing(found, items):
        changed = True
        there = known.get((item.repo, item.kind))
        if there is None:
            hub.ask(
                slug,
                lambda item=item: hub.api.add_collection_item(  # type: ignore[misc]
                    slug, item.repo, item.kind, note=item.note, exists_ok=True
                ),
            )
        else:
            hub.ask(
                slug,
                lambda there=there, item=item: hub.api.update_collection_item(  # type: ignore[misc]
                    slug, there.item_object_id, note=item.note
                ),
            )
    if public and found.private:
        hub.ask(slug, lambda: hub.api.update_collection_metadata(slug, private=False))
        changed = True
    return slug, changed
