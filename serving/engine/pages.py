"""Cache pages for requests: how many, from where, and back."""

from __future__ import annotations

from stepwell.models.cache import CacheSequence, OutOfPages, PagedKVCache
from stepwell.models.ladder import LadderSet, SubNetwork
from stepwell.schedulers.plan import Capacity
from stepwell.schedulers.request import OperatingPoint, Request
from stepwell.serving.engine.entry import Entry


class PageKeeper:
    """Translates between requests, which know tokens and operating points, and the cache, which knows sub-networks.

    Nobody else may hold sequences in ``cache``.
    """

    def __init__(self, cache: PagedKVCache, ladders: LadderSet) -> None:
        self._cache = cache
        self._subnets = {
            ladder.point_name(level): entry.subnet
            for ladder in ladders.ladders.values()
            for level, entry in enumerate(ladder.levels)
        }
        self._most_layers = max(len(subnet.kv_layers) for subnet in self._subnets.values())
        self._covers: dict[tuple[str, ...], tuple[int, SubNetwork | None]] = {}
        """See :meth:`_cover`."""
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

    def points_that_fit(self, request: Request) -> tuple[OperatingPoint, ...]:
        """Those of its points at which the cache could ever hold ``request``."""
        blocks = -(-(request.prompt_tokens + request.max_tokens - 1) // self._cache.page_tokens)
        if blocks * self._most_layers <= self.total_pages:
            return request.points
        return tuple(point for point in request.points if self.needed_pages(request, point) <= self.total_pages)

    def subnet(self, point: OperatingPoint) -> SubNetwork:
        """What runs at ``point``."""
        return self._subnets[point.name]

    def admit(self, entry: Entry, point: OperatingPoint) -> CacheSequence | None:
        """Pages for all known tokens, reusing those of earlier requests; None, and nothing held, if there are too few.

        All at once, so that only growth by generated tokens can run out of pages later: every time somebody is put
        back, a token was gained, and the engine cannot put requests back in a circle forever.

        Reused tokens have no exit states, so they could never be backfilled. A request that may go deeper later
        therefore reuses pages only if they cover the deepest layers it may run; it then holds all of these from the
        start. Else it computes its prompt anew: it loses time, not its way up.
        """
        start = self.subnet(point)
        entry.max_depth, cover = self._cover(entry.request, point)
        if cover is None:
            return self._open(entry, start, reuse=False)
        if cover.kv_layers == start.kv_layers:
            return self._open(entry, start, reuse=True)
        pages = self._open(entry, cover, reuse=True)
        if pages is not None and pages.num_tokens == 0:
            self._cache.free(pages)  # no need for deeper layers yet
            pages = None
        return pages or self._open(entry, start, reuse=False)

    def _cover(self, request: Request, point: OperatingPoint) -> tuple[int, SubNetwork | None]:
        """``max_depth`` of a generation that starts at ``point``, and the sub-network whose pages it may reuse; None if
        that would not cover the deepest layers it may run."""
        key = (point.name, *[p.name for p in request.points]) if request.may_switch else (point.name,)
        if (known := self._covers.get(key)) is None:
            start = self.subnet(point)
            subnets = [self.subnet(each) for each in request.points] if request.may_switch else [start]
            depth = max(subnet.depth for subnet in subnets) if request.may_switch else 0
            cover = max((s for s in subnets if start.shares_kv_with(s)), key=lambda s: len(s.kv_layers), default=start)
            reaches = len(cover.kv_layers) >= max(len(subnet.kv_layers) for subnet in subnets)
            known = self._covers[key] = depth, cover if reaches else None
        return known

    def _open(self, entry: Entry, subnet: SubNetwork, reuse: bool) -> CacheSequence | None:
        request, token_ids = entry.request, entry.token_ids
        pages = self._cache.open(subnet, request.prompt_tokens + request.max_tokens - 1)
        try:
            if reuse:
                self._cache.match_prefix(pages, token_ids)
            self._cache.reserve(pages, len(token_ids))
        except OutOfPages:
            self._cache.free(pages)
            return None
        return pages

    def covers(self, entry: Entry, point: OperatingPoint) -> bool:
        """Whether it holds pages in all layers of ``point``."""
        assert entry.pages is not None
        return entry.pages.covers(self.subnet(point))

    def widen(self, entry: Entry, point: OperatingPoint, to_spare: int) -> bool:
        """Pages for its tokens in all layers of ``point``; False, and nothing changed, if that would not leave what its
        next block takes in the new layers and ``to_spare`` pages."""
        pages, subnet = entry.pages, self.subnet(point)
        assert pages is not None
        num_layers = len(subnet.kv_layers) - pages.num_rows
        if num_layers * (pages.num_blocks + 1) + to_spare > self._cache.free_pages:
            return False
        self._cache.widen(pages, subnet)
        return True

    def grow(self, entry: Entry, num_tokens: int) -> bool:
        """Room for ``num_tokens`` tokens in all; False, and nothing changed, if there are too few pages."""
        assert entry.pages is not None
        try:
            self._cache.reserve(entry.pages, num_tokens)
        except OutOfPages:
            return False
        return True

    def commit(self, entry: Entry, subnet: SubNetwork, num_tokens: int) -> None:
        """The first ``num_tokens`` tokens are computed, the latest of them by ``subnet``."""
        token_ids = entry.token_ids
        assert entry.pages is not None
        computed = token_ids if num_tokens == len(token_ids) else token_ids[:num_tokens]
        self._cache.commit(entry.pages, computed, subnet)
        entry.computed()

    def release(self, entry: Entry) -> None:
        """Give back its pages, if it holds any."""
        pages, entry.pages = entry.pages, None
        if pages is not None:
            self._cache.free(pages)

    def check_integrity(self, anybody_runs: bool) -> None:
        """Raise AssertionError if a page is lost or owned twice, or held although nobody runs."""
        self._cache.check_integrity()
        assert anybody_runs or self._cache.free_pages == self._cache.total_pages, "pages held while nobody runs"
