"""What the launchers of several machines tell each other, two of them in one process."""

import socket
import threading
import time

import pytest

from mg.parallel.nodes import Failure, Nodes


def test_strangers_at_the_port_change_nothing():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = Nodes(node=0, count=2, host="127.0.0.1", port=port, seconds=1)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b'GET / HTTP/1.1\n[1]\n{"done": 1}\n{"node": 7}\n')
        time.sleep(0.1)
        assert first.look() is None and first.waiting
    time.sleep(0.1)
    assert first.look() is None and first.waiting  # nor does their leaving
    second = Nodes(node=1, count=2, host="127.0.0.1", port=port, seconds=1)
    assert second.look() is None
    time.sleep(0.1)
    assert first.look() is None
    first.fail(Failure("rank 0", 6))
    time.sleep(0.1)
    assert second.look() == Failure("rank 0", 6) and not first.waiting
    second.close()
    first.close()


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_a_machine_that_comes_after_the_failure_hears_of_it(late):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = (Nodes(node=node, count=2, host="127.0.0.1", port=port, seconds=9) for node in (0, 1))
    first.fail(Failure("rank 1", 3))
    if not late:
        second.look()  # its connection waits to be accepted
    start = time.monotonic()
    closing = threading.Thread(target=first.close)
    closing.start()
    time.sleep(late)
    while second.look() is None and time.monotonic() < start + 4:
        time.sleep(0.05)
    closing.join()
    assert second.failure == Failure("rank 1", 3)
    assert time.monotonic() - start < late + 2  # no longer than it takes
    second.close()


def test_after_a_failure_a_machine_that_never_comes_is_not_waited_for_long():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = Nodes(node=0, count=2, host="127.0.0.1", port=port, seconds=9)
    first.fail(Failure("rank 1", 3))
    start = time.monotonic()
    first.close(0.5)
    assert 0.4 < time.monotonic() - start < 3
