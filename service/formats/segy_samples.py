"""The sample formats of SEG-Y: words to numbers, and a check that they are stored as the format code says.

Arithmetic alone never reveals a wrong code: IBM's 1.5 read as IEEE is 9.5. But in IBM's format
the first hexadecimal digit of a fraction is never zero, and in IEEE's the same four bits (the last of the exponent,
three of the fraction) are zero in about 8 % of all numbers: log-uniform numbers give half of log2(9/8). Over a few
hundred samples that tells them apart with certainty; integers taken for floats, and words in the wrong byte order, are
given away by their magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import MalformedUpload, UnsupportedDtype
from seisbind.model.survey.notes import Note

Float32 = NDArray[np.float32]
Words = NDArray[Any]  # samples as stored, in either byte order

ENOUGH = 256  # numbers after which a digit that is never zero is no accident: .92^256 is 5e-10
DISTINCT = 64  # and as many different ones: a record of -1 and 1 shows nothing
IBM_UNNORMALISED = 0.01  # share of zero first digits above which words are not IBM's; IEEE has 0.06 to 0.09
IEEE_NORMALISED = 0.005  # share below which IEEE is in doubt
IMPLAUSIBLE = 0.001  # share of numbers beyond 1e30 (or NaN) above which they are no samples
LARGE_INT = 1 << 28  # every float between 2^-60 and 2^60 is larger when read as an integer


@dataclass(frozen=True, slots=True)
class Coding:
    """A format code: how a sample is stored, without its byte order."""

    code: int
    name: str
    kind: str

    @property
    def width(self) -> int:
        """Bytes a sample."""
        return np.dtype(self.kind).itemsize


IBM = Coding(1, "IBM float32", "u4")
_EXPONENT = np.arange(128) * 4 - (256 + 24)
IBM_FACTOR = np.concatenate([np.ldexp(1.0, _EXPONENT), np.ldexp(-1.0, _EXPONENT)])  # by the first byte of a number
CODINGS = {
    coding.code: coding
    for coding in (
        IBM,
        Coding(2, "int32", "i4"),
        Coding(3, "int16", "i2"),
        Coding(5, "IEEE float32", "u4"),
        Coding(6, "IEEE float64", "f8"),
        Coding(8, "int8", "i1"),
    )
}
UNREAD = {4: "fixed point with gain", 7: "int24", 9: "int64", 10: "uint32", 11: "uint16", 12: "uint64", 15: "uint24",
          16: "uint8"}  # fmt: skip


def coding_of(code: int) -> Coding:
    """The coding of a format code (bytes 3225-3226).

    Raises:
        UnsupportedDtype: a code that exists and is not read.
        MalformedUpload: 0, or a code that does not exist.
    """
    if code in CODINGS:
        return CODINGS[code]
    read = ", ".join(f"{c.code} ({c.name})" for c in CODINGS.values())
    if code in UNREAD:
        raise UnsupportedDtype(f"The SEG-Y has format code {code} ({UNREAD[code]}); read are {read}.")
    raise MalformedUpload(
        f"The SEG-Y states format code {code} in bytes 3225-3226, which means nothing; how its samples are stored must "
        f"not be guessed. Set it to one of {read}."
    )


def decode(words: Words, coding: Coding) -> Float32:
    """Samples as float32; what float32 cannot hold becomes infinite (and is refused by `check_gathers`)."""
    with np.errstate(over="ignore", invalid="ignore"):
        if coding is IBM:
            native = words.astype(np.uint32)
            return np.asarray((native & 0xFFFFFF) * IBM_FACTOR[native >> 24], dtype=np.float32)
        if coding.code == 5:
            return words.astype(np.uint32).view(np.float32)
        return words.astype(np.float32)


@dataclass(slots=True)
class SampleCheck:
    """Whether samples are in the format that the format code states: `add` all of them, then ask for the `verdict`.

    This one, of int16 and int8, accepts everything: any bytes can be such integers.
    """

    coding: Coding
    numbers: int = 0  # other than zero

    def add(self, words: Words) -> None:
        """Count ``words`` of any shape."""

    def verdict(self) -> tuple[Note, ...]:
        """Nothing, or a note that the format could not be verified.

        Raises:
            MalformedUpload: the samples are not in the format that the code states.
        """
        return ()

    def _wrong(self, what: str) -> MalformedUpload:
        return MalformedUpload(f"The format code says {self.coding.name}, but {what}")


@dataclass(slots=True)
class IntegerCheck(SampleCheck):
    """Of int32: not floats taken for integers."""

    large: int = 0

    def add(self, words: Words) -> None:
        integer = words.astype(np.int64).ravel()
        integer = integer[integer != 0]
        self.large += int((np.abs(integer) > LARGE_INT).sum())
        self.numbers += len(integer)

    def verdict(self) -> tuple[Note, ...]:
        if self.numbers >= ENOUGH and self.large > (1 - IMPLAUSIBLE) * self.numbers:
            raise self._wrong(
                f"nearly all of {self.numbers} samples are larger than {LARGE_INT}, as floats are when read as "
                "integers. Correct bytes 3225-3226."
            )
        return ()


@dataclass(slots=True)
class FloatCheck(SampleCheck):
    """Of IEEE float64, and part of the others': plausible magnitudes."""

    huge: int = 0  # beyond 1e30, infinite or NaN
    tiny: int = 0  # under 1e-30

    def add(self, words: Words) -> None:
        size = np.abs(words.astype(np.float64).ravel())
        size = size[size != 0]
        self.huge += int((~(size <= 1e30)).sum())  # NaN too
        self.tiny += int((size < 1e-30).sum())
        self.numbers += len(size)

    def verdict(self) -> tuple[Note, ...]:
        if self.numbers and (self.huge > IMPLAUSIBLE * self.numbers or self.tiny == self.numbers):
            raise self._wrong(
                f"read so, {self.huge} of {self.numbers} samples lie beyond 1e30 or are not numbers, and "
                f"{self.tiny} under 1e-30: another format or byte order. Correct bytes 3225-3226."
            )
        return ()


@dataclass(slots=True)
class Float32Check(FloatCheck):
    """Of IBM and IEEE float32: also not one taken for the other."""

    zero_digit: int = 0  # with a first hexadecimal digit of zero, as IBM would read them
    distinct: int = 0  # different numbers in one call of `add`, at most

    def add(self, words: Words) -> None:
        native = words.astype(np.uint32).ravel()
        native = native[(native & 0x7FFFFFFF) != 0]
        self.zero_digit += int((((native & 0xF00000) == 0) & ((native & 0xFFFFFF) != 0)).sum())  # 0 x 16^n is 0
        ibm = self.coding is IBM
        exponent = (native >> 24) & 0x7F if ibm else (native >> 23) & 0xFF
        low, high = (64 - 25, 64 + 25) if ibm else (127 - 100, 127 + 100)  # 16^25 and 2^100 are 1.3e30
        self.huge += int((exponent >= high).sum())
        self.tiny += int((exponent < low).sum())
        self.distinct = max(self.distinct, len(np.unique(native[:4096])))
        self.numbers += len(native)

    def verdict(self) -> tuple[Note, ...]:
        if not self.numbers:
            return ()
        share, ibm = self.zero_digit / self.numbers, self.coding is IBM
        if ibm and self.numbers >= ENOUGH and share > IBM_UNNORMALISED:
            raise self._wrong(
                f"{share:.1%} of {self.numbers} samples are no normalised IBM numbers; they look like IEEE "
                "floats (code 5). Read wrongly they would be off by up to a factor of 16: correct bytes 3225-3226."
            )
        if not ibm and self.numbers >= ENOUGH and self.distinct >= DISTINCT and not self.zero_digit:
            raise self._wrong(
                f"all {self.numbers} samples are normalised IBM numbers, of IEEE's about 8 % are not; they look "
                "like IBM floats (code 1). Correct bytes 3225-3226, or write the file again."
            )
        FloatCheck.verdict(self)
        if self.numbers < ENOUGH or (share > 0 if ibm else share < IEEE_NORMALISED):
            text = f"{self.coding.name} as the file says; {self.numbers} numbers do not show whether that is true."
            return (Note("format_unverified", text),)
        return ()


def sample_check(coding: Coding) -> SampleCheck:
    """A new check of a file's samples."""
    checks: dict[int, type[SampleCheck]] = {1: Float32Check, 2: IntegerCheck, 5: Float32Check, 6: FloatCheck}
    return checks.get(coding.code, SampleCheck)(coding)
