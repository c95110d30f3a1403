"""Event files, read back by Google's own protocol buffers (they come with MindSpore) and against a foreign file."""

import math
import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mg.trainers.event_files import EventFile, crc32c

# What another writer (tensorboardX 2.6.5) made of one scalar, train/loss 0.5 at step 3.
FOREIGN = bytes.fromhex(
    "1800000000000000a37f4b2209388d0d245cc2da411a0d627261696e2e4576656e743a32696f7dac200000000000000029eda95009259a0d24"
    "5cc2da4110032a130a110a0a747261696e2f6c6f7373150000003fb17e3071"
)


def event_class():
    """Build the messages of event.proto that matter here from their published field numbers."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event_test.proto", package="t", syntax="proto3")
    layout = {
        "Value": [("tag", 1, kinds.TYPE_STRING, None), ("simple_value", 2, kinds.TYPE_FLOAT, None)],
        "Summary": [("value", 1, kinds.TYPE_MESSAGE, ".t.Value")],
        "SessionLog": [("status", 1, kinds.TYPE_INT32, None)],
        "Event": [
            ("wall_time", 1, kinds.TYPE_DOUBLE, None), ("step", 2, kinds.TYPE_INT64, None),
            ("file_version", 3, kinds.TYPE_STRING, None), ("summary", 5, kinds.TYPE_MESSAGE, ".t.Summary"),
            ("session_log", 7, kinds.TYPE_MESSAGE, ".t.SessionLog"),
        ],
    }
    for name, fields in layout.items():
        message = file.message_type.add(name=name)
        for field, number, kind, type_name in fields:
            label = kinds.LABEL_REPEATED if (name, field) == ("Summary", "value") else kinds.LABEL_OPTIONAL
            message.field.add(name=field, number=number, type=kind, type_name=type_name, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


Event = event_class()


def masked(data):
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(data):
    """Split a file into its events; both checksums of each record must hold."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        content = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12]) == (masked(data[:8]),)
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked(content),)
        found.append(Event.FromString(content))
        data = data[16 + length :]
    return found


def written(folder):
    return [events(path.read_bytes()) for path in sorted(folder.glob("*tfevents*"))]


@pytest.mark.parametrize("text, value", [(b"123456789", 0xE3069283), (b"", 0), (bytes(32), 0x8A9136AA)])
def test_checksum_has_the_published_values(text, value):
    assert crc32c(text) == value


def test_a_foreign_file_and_ours_differ_in_the_time_only(tmp_path):
    file = EventFile(tmp_path, 0)
    file.scalars("train", 3, {"loss": 0.5})
    file.close()
    foreign, (ours,) = events(FOREIGN), written(tmp_path)
    for event in (*foreign, *ours):
        assert event.wall_time > 1.7e9
        event.wall_time = 0
    assert ours == foreign
    assert (ours[0].file_version, ours[1].step, ours[1].summary.value[0].tag) == ("brain.Event:2", 3, "train/loss")


def test_values_steps_and_tags_come_back(tmp_path):
    file = EventFile(tmp_path, 0)
    values = {"loss": 0.1, "größe": -3e7, "lr": 1e-45, "huge": 1e300, "tiny": -1e300, "nan": math.nan}
    file.scalars("train", 1_234_567_890_123, values)
    (_, event), = written(tmp_path)  # there before the file is closed
    assert event.step == 1_234_567_890_123
    found = {value.tag: value.simple_value for value in event.summary.value}
    assert math.isnan(found.pop("train/nan"))
    assert found == {
        "train/loss": struct.unpack("<f", struct.pack("<f", 0.1))[0], "train/größe": -3e7,
        "train/lr": pytest.approx(1.4e-45), "train/huge": math.inf, "train/tiny": -math.inf,
    }
    file.close()


def test_a_resume_voids_the_steps_beyond_it(tmp_path):
    """Readers apply a session log with status START to everything read before: its step and later ones are void."""
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5)), (4, (5,))):
        file = EventFile(tmp_path, start)
        for step in steps:
            file.scalars("train", step, {"loss": step + start / 10})
        file.close()
    kept = []
    for part in written(tmp_path):
        for event in part:
            if event.session_log.status == 1:
                kept = [(step, value) for step, value in kept if step < event.step]
            kept += [(event.step, round(value.simple_value, 4)) for value in event.summary.value]
    assert kept == [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2), (5, 5.4)]
