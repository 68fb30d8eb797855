"""What is committed, over what, and what becomes of a commit that fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from random import Random

import pytest

from gigaoffice_worker.broker.consumer import Committed
from gigaoffice_worker.broker.errors import (
    CommitLostError,
    CommitMapTooLargeError,
    CommitRefusedError,
    CommitRetriableError,
)
from gigaoffice_worker.core.commit_map import CommitMap
from gigaoffice_worker.engine.commits import Committer
from gigaoffice_worker.observe.metrics import Metrics
from tests.support.making import Partition, dispatcher


class Cluster:
    """The consumer's commits as the cluster takes them. `failures` are raised first, one by each commit."""

    def __init__(self, *partitions: int) -> None:
        self.positions = {partition: Committed(0, "") for partition in partitions}
        self.failures: deque[Exception | None] = deque()
        self.unreadable: deque[Exception] = deque()
        self.commits: list[dict[int, int]] = []
        self.asked: list[set[int]] = []

    def all_committed(self, partitions, timeout: float) -> dict[int, Committed]:
        self.asked.append(set(partitions))
        if self.unreadable:
            raise self.unreadable.popleft()
        return {p: self.positions[p] for p in partitions if p in self.positions}

    def commit(self, positions: Mapping[int, Committed], timeout: float) -> None:
        self.commits.append({partition: at.position for partition, at in positions.items()})
        if self.failures and (failure := self.failures.popleft()) is not None:
            raise failure
        self.positions.update(positions)


class Scene:
    """A committer of two partitions in a group that has committed their beginnings."""

    def __init__(self) -> None:
        self.dispatcher = dispatcher()
        self.partitions = {number: Partition(number) for number in (0, 1)}
        self.assignments = {number: partition.assignment for number, partition in self.partitions.items()}
        self.cluster = Cluster(0, 1)
        self.gone: list[int] = []
        self.committer = Committer(self.cluster, self.dispatcher, Metrics("0"), 4096)

    def finish(self, partition: int, count: int = 1) -> None:
        """Receive and settle so many requests."""
        for _ in range(count):
            self.dispatcher.offer([work := self.partitions[partition].work()])
            self.dispatcher.settle([work])

    def commit(self, timeout: float = 1.0) -> bool:
        made = self.committer.commit(self.assignments, timeout)
        for partition in made.gone:
            self.gone.append(partition)
            self.dispatcher.forget(self.assignments.pop(partition))
        return made.landed


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_only_progress_is_committed(scene):
    scene.finish(0, 3)
    assert scene.commit()
    assert scene.commit()
    assert scene.cluster.commits == [{0: 3}]
    assert scene.assignments[0].committed == 3


def test_what_is_finished_behind_a_running_request_travels_with_the_commit(scene):
    scene.dispatcher.offer([scene.partitions[0].work()])
    scene.finish(0, 2)
    assert scene.commit()
    position, metadata = scene.cluster.positions[0]
    assert position == 0
    assert CommitMap.decode(metadata, 0) == CommitMap(0, 3, (0,))


@pytest.mark.parametrize("looked_up", [False, True], ids=["not looked up yet", "looked up"])
def test_mark_that_a_partition_came_with_is_handed_on_until_it_was_looked_up(scene, looked_up):
    held = scene.assignments[0]
    held.mark = "m1:0.5:0.7"
    mark = "m1:0.9:0.9" if looked_up else held.mark
    committer = Committer(scene.cluster, scene.dispatcher, Metrics("0"), 4096, lambda _ours: {0: mark})
    scene.dispatcher.offer([scene.partitions[0].work()])
    scene.finish(0)
    commit_map = scene.assignments[0].tracker.commit_map().encode(4000)[0]
    assert committer.commit(scene.assignments, 1.0, handing_over=True).landed
    assert scene.cluster.positions[0] == Committed(0, commit_map if looked_up else f"{commit_map};{mark}")


def test_position_that_is_gone_is_not_committed_over_and_its_partition_is_forgotten(scene):
    scene.finish(0, 3)
    scene.finish(1, 2)
    del scene.cluster.positions[0]
    assert scene.commit()
    assert scene.gone == [0]
    assert scene.cluster.commits == [{1: 2}]
    assert 0 not in scene.cluster.positions


def test_partition_without_progress_is_looked_at_from_time_to_time(scene):
    assert scene.commit()
    assert scene.cluster.asked == [{0, 1}]
    del scene.cluster.positions[1]
    assert scene.commit()
    assert len(scene.cluster.asked) == 1
    scene.committer._next_look = 0.0
    assert scene.commit()
    assert scene.gone == [1]


def test_position_that_differs_is_our_own_commit_whose_answer_did_not_come(scene):
    scene.finish(0, 3)
    scene.cluster.positions[0] = Committed(2, "")
    assert scene.commit()
    assert scene.gone == []
    assert scene.cluster.positions[0].position == 3


def test_late_commit_that_put_the_position_back_is_made_good(scene):
    scene.finish(0, 3)
    assert scene.commit()
    scene.cluster.positions[0] = Committed(1, "")
    scene.committer._next_look = 0.0
    assert scene.commit()
    assert scene.commit()
    assert scene.gone == []
    assert scene.cluster.positions[0].position == 3


def test_late_commit_that_put_back_only_the_map_is_made_good(scene):
    scene.dispatcher.offer([scene.partitions[0].work()])
    scene.finish(0)
    assert scene.commit()
    older = scene.cluster.positions[0]
    scene.finish(0)
    assert scene.commit()
    newer = scene.cluster.positions[0]
    assert newer != older
    scene.cluster.positions[0] = older
    scene.committer._next_look = 0.0
    assert scene.commit()
    assert scene.commit()
    assert scene.cluster.positions[0] == newer


def test_each_try_looks_again(scene):
    """Between two tries the topic may be deleted and created again: the old position must not follow it."""
    scene.finish(0, 3)
    look = scene.cluster.all_committed
    scene.cluster.failures.append(CommitRetriableError("UnknownTopicOrPartitionError"))

    def created_again_in_between(partitions, timeout):
        if scene.cluster.commits:
            scene.cluster.positions.pop(0, None)
        return look(partitions, timeout)

    scene.cluster.all_committed = created_again_in_between
    assert scene.commit()
    assert scene.gone == [0]
    assert scene.cluster.commits == [{0: 3}]
    assert 0 not in scene.cluster.positions


def test_retriable_failure_is_tried_again_within_the_time(scene):
    scene.finish(0)
    scene.cluster.failures.extend([CommitRetriableError("no coordinator"), None])
    assert scene.commit()
    assert scene.cluster.commits == [{0: 1}, {0: 1}]


def test_retriable_failure_that_lasts_is_told_and_made_again_with_the_next_commit(scene):
    scene.finish(0)
    scene.cluster.failures.extend([CommitRetriableError("no answer")] * 2)
    assert not scene.commit(timeout=0.15)
    assert scene.committer.trouble is None
    assert scene.commit()
    assert scene.cluster.positions[0].position == 1


def test_positions_that_cannot_be_read_forbid_the_commit(scene):
    scene.finish(0)
    scene.cluster.unreadable.append(CommitRetriableError("no answer"))
    assert not scene.commit(timeout=0.0)
    assert scene.cluster.commits == []
    assert scene.gone == []


def test_look_that_fails_with_nothing_to_commit_is_no_failure(scene):
    scene.cluster.unreadable.append(CommitRetriableError("no answer"))
    assert scene.commit()
    assert len(scene.cluster.asked) == 1


def test_lost_membership_ends_the_tries(scene):
    scene.finish(0)
    scene.cluster.failures.append(CommitLostError("UnknownMemberIdError"))
    assert not scene.commit()
    assert len(scene.cluster.commits) == 1


def test_refused_partition_does_not_hold_up_the_others(scene):
    scene.finish(0)
    scene.finish(1)
    scene.cluster.failures.extend([CommitRefusedError("all"), CommitRefusedError("first"), None])
    assert not scene.commit()
    assert scene.cluster.commits == [{0: 1, 1: 1}, {0: 1}, {1: 1}]
    assert scene.assignments[1].committed == 1
    assert scene.committer.trouble == "commit of partition 0 refused: first"


def test_refusal_is_trouble_until_a_commit_lands(scene):
    scene.finish(0)
    scene.cluster.failures.append(CommitRefusedError("TopicAuthorizationFailedError"))
    assert not scene.commit()
    assert "TopicAuthorizationFailedError" in scene.committer.trouble
    assert scene.commit()
    assert scene.committer.trouble is None


def test_refusal_goes_with_its_partition(scene):
    scene.finish(0)
    scene.cluster.failures.append(CommitRefusedError("no"))
    assert not scene.commit()
    del scene.assignments[0]
    assert scene.commit()
    assert scene.committer.trouble is None


def test_map_that_is_too_large_is_cut(scene):
    # At no regular distance, or a small map would do.
    chance = Random(1)
    for _ in range(200):
        scene.dispatcher.offer([scene.partitions[0].work()])
        scene.finish(0, chance.randint(1, 9))
    scene.cluster.failures.extend([CommitMapTooLargeError()] * 6)
    assert scene.commit()
    assert len(scene.cluster.positions[0].metadata) <= 4096 >> 6
    assert scene.committer.full == {0}


def test_broker_that_takes_no_map_at_all_refuses(scene):
    scene.finish(0)
    scene.cluster.failures.extend([CommitMapTooLargeError()] * 13)
    assert not scene.commit()
    assert scene.committer.trouble
