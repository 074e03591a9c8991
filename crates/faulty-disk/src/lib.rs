//! A disk and a clock that fail on demand: a library that the fault tests preload (`LD_PRELOAD`) into real geodes.
//!
//! It stands between the process and the kernel for what the standard library does with files: `write`, `pwrite`, `read`,
//! `pread`, `fsync`, `fdatasync`; and, for a file system that is read-only all at once, `open`, `ftruncate`, `rename`,
//! `unlink`, `mkdir`. Below the geode's data directory they fail as the [control file](control) says; every success of
//! a sync is noted in a journal, so that the tests know what a machine that stops would have kept. It also answers with
//! another boot of the machine and another time when told to. Nothing that is shipped knows of it.
//!
//! Faults are injected where the kernel would report them: before a byte is written, or after a part of them. What it
//! cannot do: calls that do not go through the C library (of a geode's, `fallocate` alone), and memory maps.

pub mod control;
#[cfg(target_os = "linux")]
pub mod preloaded;
