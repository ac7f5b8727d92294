"""`Batch`: inputs that vLLM answers in one call, in an engine that is started for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.engine.vllm.offline import OfflinePrefixes, Pair
from foreword.engine.vllm.refusals import check_installed
from foreword.generate import Generated
from foreword.options import GenerateOptions
from foreword.store import PrefixStore


@dataclass(frozen=True)
class Batch:
    """What vLLM is started with.

    Attributes:
        source: The model: a local folder, or a name on the Hub.
        store: Where prefixes are.
        flags: More flags, as ``vllm serve`` takes them.
        revision: Revision on the Hub.
        dtype: What vLLM computes in; ``auto`` leaves it to vLLM.
    """

    source: str
    store: PrefixStore
    flags: Sequence[str] = ()
    revision: str | None = None
    dtype: str = "auto"

    def generated(
        self,
        inputs: Sequence[Pair],
        options: GenerateOptions,
        *,
        frozen: bool = False,
        progress: bool = False,
    ) -> list[list[Generated]]:
        """The texts of each input; see `OfflinePrefixes.generated`. All is checked before vLLM starts.

        Args:
            inputs: Pairs of a prefix's name and a text or row.
            options: How to generate.
            frozen: The model alone answers, in the templates of each prefix.
            progress: Show vLLM's own bar of progress on standard error.

        Raises:
            ServeError: vLLM is not installed, does not start, fails, or is given flags of Foreword's.
            BackboneError: There is no such model.
            UnsupportedModel: It is no decoder.
            DataError: An input does not fit, or vLLM does not have an option.
            MismatchError: vLLM cannot serve a prefix.
        """
        check_installed()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vLLM is imported
        from foreword.engine.vllm.runtime import read_offline_flags, running

        prefixes = OfflinePrefixes(self.store.folder, self.source, revision=self.revision)
        own = {"model": self.source, "dtype": self.dtype, **prefixes.engine_arguments()}
        arguments, context = read_offline_flags(self.flags, own)
        prefixes.limit(context)
        asked = prefixes.asked(inputs, options, frozen=frozen)
        with running(arguments) as llm:
            if not frozen:
                prefixes.meet(llm, [name for name, _ in inputs])
            return prefixes.answers(llm, asked, options, progress=progress)
