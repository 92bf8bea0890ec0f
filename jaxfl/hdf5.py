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
            member(group, name)
            kind = group.get(name, getclass=True)
            thing = group[name]
            address = h5py.h5o.get_info(thing.id).addr
            if kind is h5py.Group and address not in seen:
                seen.add(address)
                groups.append(thing)


def member(group: Any, name: str) -> Any:
    """A member of a group, or None where there is none; only by a hard link.

    Raises:
        ValueError: another link, or an array whose bytes are not in this file.
    """
    import h5py

    if name not in group.keys():
        return None
    link = group.get(name, getlink=True)
    place = f"{group.name.rstrip('/')}/{name}"
    if not isinstance(link, h5py.HardLink):
        where = " to " + getattr(link, "filename", "")[:60] if hasattr(link, "filename") else ""
        raise ValueError(
            f"{place!r} is a {type(link).__name__}{where}: only hard links are followed"
        )
    thing = group[name]
    if isinstance(thing, h5py.Dataset) and (thing.external or thing.is_virtual):
        raise ValueError(
            f"the bytes of {place!r} are stored in another file: store them in this one"
        )
    return thing
