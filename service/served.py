"""Which recommender answers an endpoint: opened at the start, replaced when its path names another bundle.

Knows no HTTP and no settings. A new bundle is opened aside, verified, replayed and put in place by one assignment;
requests under way hold the old one, and with the last of them it is gone.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mufin.errors import MufinError
from service.block_lists import BlockFile, BlockList
from service.bundles import Endpoint, OpenBundle, Opener, Place, open_bundles
from service.errors import ServiceError, SettingsError
from service.recommender import Recommender
from service.telemetry import Metrics, get_logger

MakeRecommender = Callable[[Endpoint, OpenBundle], Recommender]


@dataclass(slots=True)
class _Slot:
    """What stands behind one endpoint."""

    recommender: Recommender
    seen: Place
    """What the path named at the last look."""
    refused: Place | None = None
    """Is not tried again: nothing about it has changed."""


@dataclass
class Served:
    """The endpoints' recommenders."""

    folders: Mapping[Endpoint, Path]
    """As set; each may be a link, or lie below one"""
    opener: Opener
    make: MakeRecommender
    metrics: Metrics
    block_lists: Mapping[Endpoint, BlockList] = field(default_factory=dict)
    _slots: dict[Endpoint, _Slot] = field(default_factory=dict)
    _alive: weakref.WeakSet[OpenBundle] = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        self.metrics.bundles_in_memory.set_function(lambda: len(self._alive))
        for endpoint, block_list in self.block_lists.items():
            age = self.metrics.block_list_age.labels(endpoint)
            age.set_function(partial(getattr, block_list, "age_seconds"))

    def recommender(self, endpoint: Endpoint) -> Recommender:
        """What answers now. Raises KeyError before ``open``, and for an endpoint without a bundle."""
        return self._slots[endpoint].recommender

    def bundles(self) -> dict[Endpoint, OpenBundle]:
        """What is served now."""
        return {endpoint: slot.recommender.bundle for endpoint, slot in self._slots.items()}

    async def open(self) -> None:
        """Open every bundle. Raises BundleError, and SettingsError for a block list file that cannot be read."""
        for endpoint, block_list in self.block_lists.items():
            await block_list.refresh()
            if block_list.failure is not None and isinstance(block_list.source, BlockFile):
                raise SettingsError(f"block list of /{endpoint}: {block_list.failure}")
            self._tell_failure(endpoint, None)
        bundles = await open_bundles(self.folders, self.opener)
        made = {endpoint: self.make(endpoint, bundle) for endpoint, bundle in bundles.items()}
        await self._apply_block_lists(made)
        for endpoint, recommender in made.items():
            self._install(endpoint, bundles[endpoint], recommender)

    async def watch(self, bundle_poll_seconds: float, block_poll_seconds: float) -> None:
        """Look for new bundles and at block lists for ever; 0: not at all."""
        looks = [(bundle_poll_seconds, self.look)]
        if self.block_lists:
            looks.append((block_poll_seconds, self.refresh_block_lists))
        await asyncio.gather(*(_repeat(look, seconds) for seconds, look in looks if seconds > 0))

    async def refresh_block_lists(self) -> None:
        """Read the lists again; what has changed holds for every request that is not in the index yet."""
        for endpoint, block_list in self.block_lists.items():
            before = block_list.failure
            if await block_list.refresh():
                await self._apply_block_lists({endpoint: self._slots[endpoint].recommender})
            self._tell_failure(endpoint, before)

    def _tell_failure(self, endpoint: Endpoint, before: str | None) -> None:
        """Once, not at every look."""
        failure = self.block_lists[endpoint].failure
        if failure is not None and before is None:
            remedy = "the list read last stays in force"
            get_logger().error("block_list_unreadable", endpoint=f"/{endpoint}", reason=failure, remedy=remedy)

    async def _apply_block_lists(self, recommenders: Mapping[Endpoint, Recommender]) -> None:
        """On return, and until the caller awaits again, all of them know the lists as they are."""
        for endpoint, recommender in recommenders.items():
            block_list = self.block_lists.get(endpoint)
            if block_list is not None and recommender.blocked_ids is not block_list.ids:
                count = await asyncio.to_thread(recommender.block, block_list.ids)
                self.metrics.blocked_labels.labels(endpoint).set(count)
                await self._apply_block_lists(recommenders)  # one read meanwhile may concern any of them
                return

    async def look(self) -> None:
        """Put what the paths name into service where it has changed, and has not changed since the last look.

        Looking twice spares a half-copied folder, and the moment in which a link is written anew.
        """
        changed: dict[Place, list[Endpoint]] = {}
        for endpoint, slot in self._slots.items():
            place = await asyncio.to_thread(Place.of, self.folders[endpoint])
            settled, slot.seen = place == slot.seen, place
            if place == slot.recommender.bundle.place:
                slot.refused = None
            elif settled and place != slot.refused:
                changed.setdefault(place, []).append(endpoint)
        for place, endpoints in changed.items():
            await self._replace(place, endpoints)

    async def _replace(self, place: Place, endpoints: list[Endpoint]) -> None:
        log = get_logger()
        try:
            bundle = self._opened(place) or await self.opener.open(place)
            # Made for all before any is put in place: what fails, fails before anything has changed.
            made = {endpoint: self.make(endpoint, bundle) for endpoint in endpoints}
            await self._apply_block_lists(made)
        except Exception as error:
            expected = isinstance(error, (MufinError, ServiceError, OSError))
            for endpoint in endpoints:
                slot = self._slots[endpoint]
                slot.refused = place
                self.metrics.bundle_swaps.add(endpoint, "refused")
                log.error(
                    "bundle_swap_refused",
                    endpoint=f"/{endpoint}",
                    folder=place.folder.name,
                    serving=slot.recommender.bundle.model.bundle_id,
                    reason=str(error),
                    remedy="the old bundle goes on serving; name a good one",
                    exc_info=None if expected else error,
                )
            return
        for endpoint, recommender in made.items():
            old = self._slots[endpoint].recommender.bundle.model.bundle_id
            self._install(endpoint, bundle, recommender)
            self.metrics.bundle_swaps.add(endpoint, "swapped")
            log.info(
                "bundle_swapped",
                endpoint=f"/{endpoint}",
                old=old,
                new=bundle.model.bundle_id,
                labels=bundle.model.labels.size,
                opened_seconds=round(bundle.opened_seconds, 3),
            )

    def _opened(self, place: Place) -> OpenBundle | None:
        """The same bundle when another endpoint has it already."""
        return next((bundle for bundle in self.bundles().values() if bundle.place == place), None)

    def _install(self, endpoint: Endpoint, bundle: OpenBundle, recommender: Recommender) -> None:
        self._alive.add(bundle)
        self._slots[endpoint] = _Slot(recommender, bundle.place)
        self.metrics.show_bundle(endpoint, bundle.model)
        if bundle.advice:
            get_logger().warning(
                "bundle_to_mend", endpoint=f"/{endpoint}", folder=bundle.place.folder.name, advice=bundle.advice
            )


async def _repeat(look: Callable[[], Awaitable[None]], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await look()
        except Exception as error:  # a defect here must end neither the watch nor the service
            get_logger().error("defect", exc_info=error)
