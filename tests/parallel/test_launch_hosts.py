"""Two hosts on this machine: network namespaces joined by a virtual cable, a launcher in each."""

import json
import shutil
import subprocess
import sys
import time

import pytest

WORKER = """
import os, socket, sys, time
rank, address = int(os.environ["RANK_ID"]), (os.environ["MS_SCHED_HOST"], 9200)
if rank == 0:
    with socket.create_server(address) as server:
        connection, (peer, _) = server.accept()
        print("heard", connection.recv(100).decode(), "from", peer)
    time.sleep(600)
for _ in range(500):
    try:
        connection = socket.create_connection(address)
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
connection.sendall(b"rank 1")
time.sleep(0.5)
sys.exit(3)
"""
TWO_HOSTS = """
set -e
unshare -n sleep 120 & other=$!
sleep 0.5
ip link add cable0 type veth peer name cable1 netns $other
ip addr add 10.213.0.1/24 dev cable0
ip link set cable0 up
ip link set lo up
nsenter -t $other -n sh -c 'ip addr add 10.213.0.2/24 dev cable1; ip link set cable1 up; ip link set lo up'
"""
RUN = """
launch() { "$1" scripts/launch.py --nproc_per_node 1 --nnodes 2 --node_rank $2 --master_addr 10.213.0.1 \
    --master_port 9100 --cluster_seconds 100 --log_dir "$3/host$2" "$3/worker.py"; }
export -f launch
nsenter -t $other -n bash -c "launch $1 1 $2" 2>/dev/null & second=$!
set +e
launch $1 0 $2 2>/dev/null
echo "first $?"
wait $second
echo "second $?"
kill $other
"""


def in_namespace(script, *words, timeout=30):
    command = ["unshare", "-Urn", "bash", "-c", script, "bash", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def namespaces():
    """Skip where the system does not let a user have networks of their own."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("unshare, nsenter or ip is missing")
    tried = in_namespace(TWO_HOSTS + "kill $other")
    if tried.returncode != 0:
        pytest.skip(f"no network namespaces here: {tried.stderr.strip()}")


def test_two_hosts_talk_and_fail_together(namespaces, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    (tmp_path / "worker.py").write_text(WORKER)
    start = time.monotonic()
    result = in_namespace(TWO_HOSTS + RUN, sys.executable, tmp_path, timeout=60)
    assert "first 3\n" in result.stdout and "second 3\n" in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "host0" / "rank-00000.log").read_text() == "heard rank 1 from 10.213.0.2\n"
    assert json.loads((tmp_path / "host0" / "node-0.json").read_text())["reason"] == "rank 1 ended with exit code 3"
    assert time.monotonic() - start < 20
