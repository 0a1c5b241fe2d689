"""``whisperfold profiles``: who has enrolled, whose voice is in use, back to an earlier version, away with it.

Heavy imports are inside the functions, so that ``--help`` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whisperfold.runtime.cli_options import BundleOption, say

if TYPE_CHECKING:
    from whisperfold.runtime.profiles import ProfileStore

ProfilesOption = Annotated[
    Path | None, typer.Option("--profiles", help="Where profiles are. Default: ~/.local/share/whisperfold/profiles.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]

profiles = typer.Typer(no_args_is_help=True, help="Profiles of the people who have enrolled.")


@profiles.command("list")
def list_profiles(
    bundle: BundleOption = None,
    root: ProfilesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List the profiles of a bundle; a star marks the one in use."""
    import json

    store = _store(bundle, root)
    active = store.active()
    name = active.name if active else None
    if as_json:
        rows = [{"name": p.name, "active": p.name == name, "version": p.version, **p.facts} for p in store.all()]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for profile in store.all():
        owner = profile.facts["owner"]
        star = "*" if profile.name == name else " "
        figures = f"WER {owner['before']:.1f} -> {owner['after']:.1f} %, {profile.facts['recordings']} recordings"
        typer.echo(f"{star} {profile.name}  {profile.version}  {profile.facts['created'][:10]}  {figures}")
    for other in set(store.names()) - {profile.name for profile in store.all()}:
        typer.echo(f"  {other}  recordings only; `whisperfold enroll {other} --resume`")


@profiles.command()
def use(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile, or none.")],
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Put a profile in use; none: the bundle as it is."""
    _store(bundle, root).use(None if name == "none" else name)


@profiles.command()
def show(
    name: NameArgument,
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Show a profile's versions, figures and report."""
    store = _store(bundle, root)
    current = store.get(name).version
    for profile in store.versions(name):
        star = "*" if profile.version == current else " "
        typer.echo(f"{star} {profile.version}  {profile.facts['created']}  {profile.facts['reason']}")
    typer.echo(f"report: {store.get(name).report}")


@profiles.command()
def export(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .zip to write.")],
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Write adapter and weights into one .zip, without recordings and texts."""
    _store(bundle, root).export(name, file)


@profiles.command()
def delete(
    name: NameArgument,
    with_recordings: Annotated[bool, typer.Option("--with-recordings", help="The recordings too, for good.")] = False,
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Delete a profile; its recordings stay unless they are named."""
    _store(bundle, root).delete(name, with_recordings)
    say(f"{name}: deleted{'' if with_recordings else '; recordings, if any, are kept (--with-recordings)'}")


@profiles.command()
def rollback(name: NameArgument, bundle: BundleOption = None, root: ProfilesOption = None) -> None:
    """Go back to the version before the current one."""
    say(f"{name}: version {_store(bundle, root).rollback(name).version} is the current one")


def _store(bundle: Path | None, root: Path | None) -> "ProfileStore":
    """The profiles of a bundle; None is the packaged one."""
    from whisperfold.runtime.bundle import Bundle, default_bundle
    from whisperfold.runtime.profiles import ProfileStore

    return ProfileStore(Bundle.open(bundle or default_bundle(), check=False), root)
