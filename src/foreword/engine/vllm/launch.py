"""Starting vLLM for a server: the model, what vLLM is told, and the engine over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foreword.engine.vllm.engine import VllmEngine
from foreword.engine.vllm.model import ServedModel
from foreword.engine.vllm.refusals import check_installed
from foreword.engine.vllm.requests import engine_arguments, placeholder_of
from foreword.store import PrefixStore


@dataclass(frozen=True)
class Launch:
    """What vLLM is started with.

    Attributes:
        source: The model: a local folder, or a name on the Hub.
        store: Where prefixes are; every worker must see the folder under this path.
        flags: More flags, as ``vllm serve`` takes them.
        name: What requests call the model; by default the source.
        revision: Revision on the Hub.
        dtype: What vLLM computes in; ``auto`` leaves it to vLLM.
        resident: Prefixes that each worker keeps in memory.
    """

    source: str
    store: PrefixStore
    flags: Sequence[str] = ()
    name: str = ""
    revision: str | None = None
    dtype: str = "auto"
    resident: int = 256

    def start(self) -> tuple[ServedModel, VllmEngine, str]:
        """The model, the engine that serves it, and the dtype that it computes in.

        Raises:
            ServeError: vLLM is not installed, does not start, or is given flags of Foreword's.
            BackboneError: There is no such model.
            UnsupportedModel: It cannot carry prefixes on vLLM.
        """
        check_installed()
        from foreword.engine.vllm.runtime import AsyncRuntime, read_flags

        model = ServedModel.read(self.source, name=self.name, revision=self.revision)
        placeholder = placeholder_of(model.tokenizer, model.vocabulary)
        own = {
            "model": self.source,
            "revision": self.revision,
            "dtype": self.dtype,
            **engine_arguments(
                self.store.folder,
                placeholder,
                resident=self.resident,
                tokenizer=model.tokenizer_digest,
            ),
        }
        runtime = AsyncRuntime(read_flags(self.flags, own))
        model = replace(model, context=runtime.context)
        engine = VllmEngine(model, runtime, placeholder, self.store)
        return engine.model, engine, runtime.dtype
