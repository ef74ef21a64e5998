"""What an engine learns from the deaths before it: whose turn is last, and who is not tried again."""
from pathlib import Path

import pytest

from kernel.engine.journal import Journal


def die(state: Path, attempt: int, *flights: tuple[str, str, str]) -> None:
    """An engine that dies with (kind, id, net) in flight."""
    journal = Journal(state, attempt)
    for kind, id, net in flights:
        with pytest.raises(RuntimeError), journal.flight(kind, [id], net):
            raise RuntimeError("CUDA error: the mark stays")


def test_a_member_is_troubled_as_soon_as_one_of_its_folds_was_in_flight(tmp_path: Path) -> None:
    die(tmp_path, 1, ("batch", "r1", "m.0"))
    journal = Journal(tmp_path, 2)
    assert [journal.rank_trouble(net) for net in ("other.0", "m.1", "m.0")] == [0, 1, 2]
    die(tmp_path, 2, ("batch", "r1", "m.1"))
    journal = Journal(tmp_path, 3)  # two folds: no third one is sent to find out the same
    assert [journal.rank_trouble(net) for net in ("other.0", "m.2", "m.1")] == [0, 2, 2]


def test_a_row_that_two_folds_die_of_is_skipped_by_all_folds(tmp_path: Path) -> None:
    for attempt, net in enumerate(("m.0", "m.0", "m.1", "m.1"), 1):
        die(tmp_path, attempt, ("batch", "r1", net))
        assert Journal(tmp_path, attempt + 1).quarantined_with("m.5") == ({"r1"} if attempt == 4 else set())
    journal = Journal(tmp_path, 6)
    assert journal.quarantined_with("m.0") == {"r1"} and not journal.quarantined_with("other.0")
    assert journal.why_dropped("m.0") is None


def test_a_net_is_dropped_for_openings_or_rows_and_its_member_for_two_folds(tmp_path: Path) -> None:
    for attempt in (1, 2):
        die(tmp_path, attempt, ("net", "m.0", "m.0"))
    journal = Journal(tmp_path, 3)
    assert "opened" in str(journal.why_dropped("m.0")) and journal.why_dropped("m.1") is None
    for attempt, row in enumerate(("r1", "r1", "r2", "r2", "r3", "r3"), 3):
        die(tmp_path, attempt, ("batch", row, "m.1"))
    journal = Journal(tmp_path, 9)
    assert "3 rows" in str(journal.why_dropped("m.1"))
    assert "2 other folds" in str(journal.why_dropped("m.7")) and journal.why_dropped("other.0") is None
    assert journal.count_quarantined() == 2 + 3  # nets and pairs


def test_what_is_published_is_remembered_over_engines(tmp_path: Path) -> None:
    assert Journal(tmp_path, 1).published() == 0
    Journal(tmp_path, 1).note_published(17)
    assert Journal(tmp_path, 2).published() == 17


def test_a_step_in_flight_at_two_deaths_is_left_out_and_casts_no_doubt_on_nets(tmp_path: Path) -> None:
    die(tmp_path, 1, ("step", "output.steps[0]", ""))
    assert not Journal(tmp_path, 2).quarantined_steps
    die(tmp_path, 2, ("step", "output.steps[0]", ""))
    journal = Journal(tmp_path, 3)
    assert journal.quarantined_steps == {"output.steps[0]"} and journal.count_quarantined() == 1
    assert not journal.nets_in_doubt and not journal.suspects and not journal.quarantined_clips
