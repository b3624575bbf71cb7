"""Sounds in WAV files and in ``.npz`` files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data import LocalData, load_source
from common.data.decoding import decode_files
from common.data.records import Clip
from common.data.sounds import decode_sound
from common.errors import ConfigError
from tests.common.record_files import TONE, wav
from tests.common.refusals import refusal

ARRAYS: dict[str, Any] = {
    "audio": np.arange(10, dtype=np.int16),
    "offsets": np.array([0, 4, 10]),
    "label": np.array([1, 0]),
    "speaker": np.array(["ann", "bob"]),
    "rate": np.array(8000),
}
KEYS = {"label": "label", "site": "speaker"}


def read(path: Path) -> Clip:
    (clip,), _ = decode_files([path], decode_sound, "sounds")
    assert clip.samples.dtype == np.int16
    assert isinstance(clip, Clip)
    return clip


def reason(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        decode_files([path], decode_sound, "sounds")
    return str(caught.value)


class TestDecoding:
    def test_sixteen_bits_stay_as_they_are(self, tmp_path: Path) -> None:
        clip = read(wav(tmp_path / "a.wav", rate=16_000))
        assert (clip.samples.tolist(), clip.rate) == (TONE.tolist(), 16_000)

    def test_eight_bits(self, tmp_path: Path) -> None:
        assert read(wav(tmp_path / "a.wav", bytes([128, 0, 255]), width=1)).samples.tolist() == [0, -32768, 32512]

    def test_twenty_four_and_thirty_two_bits(self, tmp_path: Path) -> None:
        low = b"".join(int(value).to_bytes(2, "little", signed=True) for value in TONE)
        wide = b"".join(b"\0" + low[at : at + 2] for at in range(0, len(low), 2))
        wider = b"".join(b"\0\0" + low[at : at + 2] for at in range(0, len(low), 2))
        assert read(wav(tmp_path / "a.wav", wide, width=3)).samples.tolist() == TONE.tolist()
        assert read(wav(tmp_path / "b.wav", wider, width=4)).samples.tolist() == TONE.tolist()

    def test_channels_are_averaged(self, tmp_path: Path) -> None:
        stereo = np.array([[100, 300], [-32768, 32767], [32767, 32767]], dtype=np.int16)
        clip = read(wav(tmp_path / "a.wav", stereo.tobytes(), channels=2))
        assert clip.samples.tolist() == [200, 0, 32767]  # -0.5 rounds to even

    def test_an_extensible_header_and_chunks_of_notes(self, tmp_path: Path) -> None:
        header = struct.pack("<HHIIHH", 0xFFFE, 1, 8000, 16_000, 2, 16)
        guid = struct.pack("<HHI", 22, 16, 0) + bytes.fromhex("0100000000001000800000aa00389b71")
        chunks = b"fmt " + struct.pack("<I", 40) + header + guid
        chunks += b"bext" + struct.pack("<I", 4) + b"note"
        chunks += b"data" + struct.pack("<I", TONE.nbytes) + TONE.tobytes()
        (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
        assert read(tmp_path / "a.wav").samples.tolist() == TONE.tolist()

    def test_floating_point(self, tmp_path: Path) -> None:
        from scipy.io import wavfile

        wavfile.write(tmp_path / "a.wav", 8000, np.array([0, 0.5, -1, 2, np.nan], dtype=np.float32))
        assert read(tmp_path / "a.wav").samples.tolist() == [0, 16384, -32768, 32767, 0]

    def test_unreadable_ones(self, tmp_path: Path) -> None:
        assert "no such file" in reason(tmp_path / "a.wav")
        assert "no sound in it" in reason(wav(tmp_path / "a.wav", b""))
        (tmp_path / "a.wav").write_bytes(b"ID3 an mp3")
        assert "not a WAV file" in reason(tmp_path / "a.wav")

    def test_a_file_cut_off_anywhere(self, tmp_path: Path) -> None:
        content = wav(tmp_path / "a.wav", TONE.tobytes() * 20).read_bytes()
        for length in range(0, len(content) - 1, 3):
            (tmp_path / "a.wav").write_bytes(content[:length])
            assert "1 of 1 sounds cannot be read" in reason(tmp_path / "a.wav")

    def test_a_compressed_file(self, tmp_path: Path) -> None:
        content = bytearray(wav(tmp_path / "a.wav").read_bytes())
        content[20] = 0x55  # MP3 in a WAV file
        (tmp_path / "a.wav").write_bytes(content)
        assert "compressed" in reason(tmp_path / "a.wav")


class TestFolders:
    def test_classes_and_speakers(self, tmp_path: Path) -> None:
        for name in ("ann/yes/1.wav", "ann/no/1.wav", "bob/yes/1.WAV"):
            wav(tmp_path / name)
        data = load_source(str(tmp_path))
        assert (data.modality, data.task, data.classes) == ("audio", "classification", ("no", "yes"))
        assert data.site is not None
        assert data.site.tolist() == ["ann", "ann", "bob"]

    def test_a_manifest_with_speakers(self, tmp_path: Path) -> None:
        for name in "ab":
            wav(tmp_path / "clips" / f"{name}.wav")
        (tmp_path / "list.csv").write_text("path,label,speaker\nclips/a.wav,yes,ann\nclips/b.wav,no,bob\n")
        data = load_source(str(tmp_path / "list.csv"), {"site": "speaker"})
        assert data.site is not None
        assert (data.modality, data.site.tolist()) == ("audio", ["ann", "bob"])

    def test_images_among_sounds_and_other_formats_are_refused(self, tmp_path: Path) -> None:
        wav(tmp_path / "a" / "1.wav")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "1.png").write_bytes(b"")
        assert "either images or sounds, got both" in refusal(tmp_path)
        (tmp_path / "b" / "1.png").rename(tmp_path / "b" / "1.mp3")
        assert "convert them" in refusal(tmp_path)


class TestArchive:
    def load(self, folder: Path, **changed: Any) -> LocalData:
        np.savez(folder / "a.npz", **{**ARRAYS, **changed})
        return load_source(str(folder / "a.npz"), KEYS)

    def test_clips_one_after_the_other(self, tmp_path: Path) -> None:
        data = self.load(tmp_path)
        assert [clip.samples.tolist() for clip in data.inputs] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
        assert data.site is not None
        assert (data.modality, data.labels.tolist(), data.site.tolist()) == ("audio", [1, 0], ["ann", "bob"])

    @pytest.mark.parametrize(
        ("changed", "why"),
        [
            ({"audio": np.zeros(10)}, "audio must be int16"),
            ({"offsets": np.array([0, 4, 11])}, "offsets must be whole numbers that grow from 0 to 10"),
            ({"offsets": np.array([0, 0, 10])}, "offsets must"),
            ({"offsets": np.array([0.0, 4, 10])}, "offsets must"),
            ({"offsets": np.array([0, 10])}, "one entry for each of the 1 records"),
            ({"rate": np.array(0)}, "rate must be one whole number"),
            ({"rate": np.array([8000, 8000])}, "rate must be one whole number"),
            ({"images": np.zeros((2, 4, 4), np.uint8)}, "either images or audio"),
        ],
    )
    def test_refused(self, tmp_path: Path, changed: dict[str, Any], why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            self.load(tmp_path, **changed)
