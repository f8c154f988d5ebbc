"""hf://org/model: a repository of the Hugging Face hub at one commit, with tokens and cache of huggingface_hub."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ssmdiag.checkpoint.budget import MOST_INDEX, parse_json, shortened
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.checkpoint.sources.http import Answer, HttpFile, Web
from ssmdiag.checkpoint.sources.interface import Source
from ssmdiag.checkpoint.sources.local import LocalFile
from ssmdiag.checkpoint.sources.place import Kind, Place
from ssmdiag.checkpoint.sources.ranged import RangedFile
from ssmdiag.errors import RemoteError

OTHER_KINDS = ("datasets", "spaces", "buckets", "kernels")


class Hub(Place):
    """One model repository. What is in it, and at which commit, is asked once; offline, the cache tells."""

    not_kept = ("_web", "_files", "_lock", "revision")

    def __init__(self, repo: str, asked: str | None) -> None:
        super().__init__()
        self._repo, self._asked = repo, None if asked is None else unquote(asked)
        self.name = f"{repo.rpartition('/')[2]}{f'@{asked}' if asked else ''}"
        self._start()

    def _start(self) -> None:
        self.revision = None
        self._web = Web(self.traffic)
        self._lock = threading.Lock()
        self._files: frozenset[str] | None = None

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._start()

    def shown(self, key: str) -> str:
        return f"hf://{self._repo}{f'@{self._asked}' if self._asked else ''}{f'/{key}' if key else ''}"

    def kind(self, key: str) -> Kind | None:
        files = self._listed()
        if key in files:
            return "file"
        return "folder" if not key or any(name.startswith(f"{key}/") for name in files) else None

    def names(self, key: str) -> list[str]:
        start = f"{key}/" if key else ""
        below = [name.removeprefix(start) for name in self._listed() if name.startswith(start)]
        return sorted({name.partition("/")[0] for name in below})

    def opened(self, key: str) -> Source:
        self._listed()
        hub = import_hub()
        path = RemotePath(self, key)
        cached = hub.try_to_load_from_cache(self._repo, key, revision=self.revision)
        if isinstance(cached, str):
            return LocalFile(Path(cached), path)
        if hub.constants.HF_HUB_OFFLINE:
            raise self._offline(self.shown(key))
        url = hub.hf_hub_url(self._repo, key, revision=self.revision, endpoint=hub.constants.ENDPOINT)
        found = HttpFile(self._web, path, url, _headers()).opened()
        if isinstance(found, RangedFile):
            return found
        raise self._refusal(found, self.shown(key))

    def _listed(self) -> frozenset[str]:
        """Return the paths of all files; the commit is known from then on."""
        with self._lock:
            if self._files is None:
                hub = import_hub()
                found = self._in_cache(hub) if hub.constants.HF_HUB_OFFLINE else self._on_the_hub(hub)
                self.revision, self._files = found
            return self._files

    def _on_the_hub(self, hub: Any) -> tuple[str, frozenset[str]]:
        self._require_model()
        address = f"{hub.constants.ENDPOINT}/api/models/{quote(self._repo)}"
        address += f"/revision/{quote(self._asked, safe='')}" if self._asked else ""
        answer = self._web.get(address, self.shown(""), _headers(), None, MOST_INDEX)
        if answer.status != 200:
            raise self._refusal(answer, self.shown(""))
        try:
            told = parse_json(answer.body.decode())
            commit, files = told["sha"], frozenset(file["rfilename"] for file in told["siblings"])
            if not isinstance(commit, str) or not all(isinstance(file, str) for file in files):
                raise TypeError("no text")
        except (ValueError, KeyError, TypeError) as error:
            raise RemoteError(
                f"{self.shown('')}: {hub.constants.ENDPOINT} does not answer as the hub does "
                f"({shortened(f'{type(error).__name__}: {error}')}).",
                advice="check HF_ENDPOINT.",
            ) from error
        return commit, files

    def _in_cache(self, hub: Any) -> tuple[str, frozenset[str]]:
        self._require_model()
        try:
            folder = Path(hub.snapshot_download(self._repo, revision=self._asked, local_files_only=True))
        except (hub.errors.LocalEntryNotFoundError, hub.errors.HFValidationError) as error:
            raise self._offline(self.shown("")) from error
        files = (file for file in folder.rglob("*") if file.is_file())
        return folder.name, frozenset(file.relative_to(folder).as_posix() for file in files)

    def _require_model(self) -> None:
        first = self._repo.partition("/")[0]
        if first in OTHER_KINDS or not first or self._repo.count("/") > 1:
            raise RemoteError(
                f"hf://{self._repo} names no model of the hub.", expected="hf://org/model, @revision or a file after it"
            )

    def _offline(self, shown: str) -> RemoteError:
        return RemoteError(
            f"{shown} is not in the hub's cache, and offline mode (HF_HUB_OFFLINE) is on.",
            advice=f"unset HF_HUB_OFFLINE, or download it where there is a network: hf download {self._repo}",
        )

    def _refusal(self, answer: Answer, shown: str) -> RemoteError:
        code = answer.headers.get("x-error-code", "")
        model = f"hf://{self._repo}"
        page = f"{import_hub().constants.ENDPOINT}/{self._repo}"
        if code == "GatedRepo":
            return RemoteError(
                f"{model} is gated: its authors grant access to those who ask (status {answer.status}).",
                advice=f"ask at {page}, then `hf auth login`, or set HF_TOKEN.",
            )
        if code == "RevisionNotFound":
            return RemoteError(f"{model} has no revision {self._asked}.", expected="a branch, a tag or a commit of it")
        if "/" not in self._repo and answer.status in (401, 403, 404):
            return RemoteError(
                f"{model} names no model of the hub (status {answer.status}).", expected="hf://org/model"
            )
        if code == "EntryNotFound":
            return RemoteError(f"{shown} does not exist.", advice=f"see what is there: {page}/tree/main")
        if answer.status in (401, 403, 404) or code == "RepoNotFound":
            token = " with your token" if _headers() else ""
            return RemoteError(
                f"{model} is not on the hub, or is private (status {answer.status}{token}).",
                advice="check the name; for a private model `hf auth login`, or set HF_TOKEN.",
            )
        return RemoteError(f"{shown} cannot be read: the hub answers with status {answer.status}.", advice="try again.")


def import_hub() -> Any:
    """Return huggingface_hub. Raises RemoteError where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise RemoteError("reading from hf:// needs huggingface_hub.", advice="pip install 'ssmdiag[hub]'") from error
    return huggingface_hub


def _headers() -> Mapping[str, str]:
    """Return the header with the user's token, where there is one."""
    hub = import_hub()
    token = None if hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else hub.get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}
