"""Cache pages for requests: how many, from where, and back."""

from __future__ import annotations

from stepwell.models.cache import CacheSequence, OutOfPages, PagedKVCache
from stepwell.models.ladder import LadderSet
from stepwell.schedulers.plan import Capacity
from stepwell.schedulers.request import OperatingPoint, Request
from stepwell.serving.engine.generation import Generation


class PageKeeper:
    """Translates between requests, which know tokens and operating points, and the cache, which knows sub-networks.

    Nobody else may hold sequences in ``cache``.
    """

    def __init__(self, cache: PagedKVCache, ladders: LadderSet) -> None:
        self._cache = cache
        self._subnets = {
            f"{name}:{level}": entry.subnet
            for name, ladder in ladders.ladders.items()
            for level, entry in enumerate(ladder.levels)
        }
        self._layers_of = {name: len(subnet.kv_layers) for name, subnet in self._subnets.items()}

    @property
    def usage_ratio(self) -> float:
        """Share of the pages that requests hold, 0..1."""
        return self._cache.usage_ratio

    @property
    def total_pages(self) -> int:
        return self._cache.total_pages

    def capacity(self) -> Capacity:
        """What is free now."""
        cache = self._cache
        return Capacity(cache.free_pages, cache.total_pages, cache.page_tokens, self._layers_of)

    def needed_pages(self, request: Request, point: OperatingPoint) -> int:
        """Pages ``request`` holds at most at ``point``. Its last token is never computed: nothing follows it."""
        return self._cache.pages_for(self._subnets[point.name], request.prompt_tokens + request.max_tokens - 1)

    def admit(self, generation: Generation, point: OperatingPoint) -> CacheSequence | None:
        """Pages for all known tokens, reusing those of earlier requests; None, and nothing held, if there are too few.

        All at once, so that only growth by generated tokens can run out of pages later: every time somebody is put
        back, a token was gained, and the engine cannot put requests back in a circle forever.
        """
        request, token_ids = generation.request, generation.token_ids
        pages = self._cache.open(self._subnets[point.name], request.prompt_tokens + request.max_tokens - 1)
        try:
            self._cache.match_prefix(pages, token_ids)
            self._cache.reserve(pages, len(token_ids))
        except OutOfPages:
            self._cache.free(pages)
            return None
        return pages

    def grow(self, generation: Generation, num_tokens: int) -> bool:
        """Room for ``num_tokens`` tokens in all; False, and nothing changed, if there are too few pages."""
        assert generation.pages is not None
        try:
            self._cache.reserve(generation.pages, num_tokens)
        except OutOfPages:
            return False
        return True

    def commit(self, generation: Generation, num_tokens: int) -> None:
        """The first ``num_tokens`` tokens are computed."""
        assert generation.pages is not None
        token_ids = generation.token_ids
        self._cache.commit(generation.pages, token_ids if num_tokens == len(token_ids) else token_ids[:num_tokens])

    def release(self, generation: Generation) -> None:
        """Give back its pages, if it holds any."""
        pages, generation.pages = generation.pages, None
        if pages is not None:
            self._cache.free(pages)

    def check_integrity(self, anybody_runs: bool) -> None:
        """Raise AssertionError if a page is lost or owned twice, or held although nobody runs."""
        self._cache.check_integrity()
        assert anybody_runs or self._cache.free_pages == self._cache.total_pages, "pages held while nobody runs"
