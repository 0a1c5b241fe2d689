"""``whisperfold profiles``: who has enrolled, whose voice is in use, back to an earlier version, away with it.

    list use show rollback delete    export import (one .zip)    encrypt decrypt (recordings and reports)

Heavy imports are inside the functions, so that ``--help`` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whisperfold.runtime.cli_options import BundleOption, ProfilesOption, say
from whisperfold.runtime.errors import ProfileError

if TYPE_CHECKING:
    from whisperfold.runtime.bundle import Bundle
    from whisperfold.runtime.profiles import ProfileStore

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]
PassphraseFileOption = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File whose first line is the passphrase. Default: ask.")
]

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
    active = store.active_name()
    if as_json:
        rows = [{"name": p.name, "active": p.name == active, "version": p.version, **p.facts} for p in store.all()]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for name in store.names():
        star = "*" if name == active and store.has(name) else " "
        typer.echo(f"{star} {name}  {_figures(store, name)}")


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
    report: Annotated[Path | None, typer.Option("--report", help="Write the report there, decrypted.")] = None,
    passphrase_file: PassphraseFileOption = None,
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Show a profile's versions, figures and report."""
    store = _store(bundle, root)
    current = store.get(name)
    for profile in store.versions(name):
        star = "*" if profile.version == current.version else " "
        typer.echo(f"{star} {profile.version}  {profile.facts['created']}  {profile.facts['reason']}")
    if report is None:
        note = "  (encrypted; --report FILE decrypts it)" if store.is_encrypted(name) else ""
        typer.echo(f"report: {current.report}{note}")
        return
    unlock(store, name, passphrase_file)
    _write(report, store.read_report(current))
    typer.echo(f"report: {report}")


@profiles.command()
def export(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .zip to write.")],
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Write adapter and weights into one .zip, without recordings and texts."""
    from whisperfold.runtime.profile_archive import export_profile

    export_profile(_store(bundle, root), name, file)


@profiles.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .zip of `profiles export`.")],
    name: Annotated[str | None, typer.Option(help="Name it gets here. Default: the file's.")] = None,
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Take a profile from another device with the same bundle."""
    from whisperfold.runtime.profile_archive import import_profile

    profile = import_profile(_store(bundle, root), _bundle(bundle), file, name or file.stem)
    say(f"{profile.name}: imported; `whisperfold profiles use {profile.name}` puts it in use")


@profiles.command()
def encrypt(
    name: NameArgument,
    passphrase_file: PassphraseFileOption = None,
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Seal recordings and reports with a passphrase; the profile itself goes on without it.

    A forgotten passphrase cannot be mended: recordings and reports are lost then.
    """
    store = _store(bundle, root)
    store.known(name)
    store.encrypt(name, ask_passphrase(name, passphrase_file, is_new=not store.is_encrypted(name)))
    say(f"{name}: recordings and reports are encrypted")


@profiles.command()
def decrypt(
    name: NameArgument,
    passphrase_file: PassphraseFileOption = None,
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Take the passphrase off again."""
    store = _store(bundle, root)
    store.known(name)
    unlock(store, name, passphrase_file)
    store.decrypt(name)
    say(f"{name}: recordings and reports are not encrypted any more")


@profiles.command()
def delete(
    name: NameArgument,
    with_recordings: Annotated[bool, typer.Option("--with-recordings", help="All of the person, for good.")] = False,
    bundle: BundleOption = None,
    root: ProfilesOption = None,
) -> None:
    """Delete a profile; --with-recordings: the person, with recordings and the profiles for all bundles."""
    _store(bundle, root).delete(name, with_recordings)
    say(f"{name}: deleted{'' if with_recordings else '; recordings, if any, are kept (--with-recordings)'}")


@profiles.command()
def rollback(name: NameArgument, bundle: BundleOption = None, root: ProfilesOption = None) -> None:
    """Go back to the version before the current one."""
    say(f"{name}: version {_store(bundle, root).rollback(name).version} is the current one")


def unlock(store: "ProfileStore", name: str, passphrase_file: Path | None) -> None:
    """Ask for the passphrase of a person whose recordings are encrypted."""
    if store.is_encrypted(name):
        store.unlock(name, ask_passphrase(name, passphrase_file))


def ask_passphrase(name: str, file: Path | None, is_new: bool = False) -> str:
    """Return the first line of the file, or what the person types, twice if it is new.

    Raises:
        ProfileError: no such file, or nobody there to ask.
    """
    if file is not None:
        try:
            return (file.read_text(encoding="utf-8").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{file}: not readable ({error}); expected a passphrase in its first line") from error
    if not sys.stdin.isatty():
        raise ProfileError(f"{name}: asking for the passphrase needs a terminal; or give --passphrase-file")
    return str(typer.prompt(f"Passphrase of {name}", hide_input=True, confirmation_prompt=is_new, err=True))


def _figures(store: "ProfileStore", name: str) -> str:
    """What the list says of a person; somebody's damage must not hide the others."""
    if not store.has(name):
        if name in store.recorded():
            return f"recordings only; `whisperfold enroll {name} --resume` learns from them for this bundle"
        return f"no version was taken; `whisperfold enroll {name}`"
    try:
        profile = store.get(name)
        owner, n = profile.facts["owner"], profile.facts["recordings"]
        figures = f"WER {owner['before']:.1f} -> {owner['after']:.1f} %, {n} recordings"
        return f"{profile.version}  {profile.facts['created'][:10]}  {figures}"
    except (ProfileError, KeyError, TypeError, ValueError):
        return f"damaged; `whisperfold profiles rollback {name}`, or enroll again"


def _write(path: Path, text: str) -> None:
    """A file that only its owner may read."""
    from whisperfold.runtime.files import write_atomic

    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise ProfileError(f"{path}: not written ({error.strerror}); choose another place") from error


def _bundle(path: Path | None) -> "Bundle":
    """An opened bundle; None is the packaged one."""
    from whisperfold.runtime.bundle import Bundle
    from whisperfold.runtime.packaged import default_bundle

    return Bundle.open(path or default_bundle(), check=False)


def _store(bundle: Path | None, root: Path | None) -> "ProfileStore":
    """The profiles of a bundle; None is the packaged one."""
    from whisperfold.runtime.profiles import ProfileStore

    return ProfileStore(_bundle(bundle), root)
