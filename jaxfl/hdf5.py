"""HDF5 that stays in its own file."""

from typing import Any


def inside(file: Any) -> None:
    """Looks whether a file leads out of itself, without going there.

    Links other than hard ones may lead to any file that the reader may read, and so may arrays
    whose bytes are stored elsewhere, or that are views of others.

    Raises:
        ValueError: it does, naming the link or the array.
    """
    import h5py

    groups, seen = [file["/"]], set()
    while groups:
        group = groups.pop()
        for name in group:
            thing = member(group, name)
            if isinstance(thing, h5py.Group) and thing not in seen:
                seen.add(thing)
                groups.append(thing)


def member(group: Any, name: str) -> Any:
    """A member of a group, or None where there is none; only by a hard link.

    Raises:
        ValueError: another link, or an array whose bytes are not in this file.
    """
    import h5py
    from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

    links, key = group.id.links, name.encode("utf-8", "surrogateescape")  # `in` follows links
    if not links.exists(key):
        return None
    place, kind = f"{group.name.rstrip('/')}/{name}", links.get_info(key).type
    if kind != h5l.TYPE_HARD:
        names = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
        kind = names.get(kind, "another kind of link")
        raise ValueError(
            f"{place!r} is {kind}, and only hard ones are followed: copy what is there"
        )
    thing = group[name]
    if isinstance(thing, h5py.Dataset) and (thing.external or thing.is_virtual):
        raise ValueError(
            f"the bytes of {place!r} are stored in another file: copy them into this one"
        )
    return thing
