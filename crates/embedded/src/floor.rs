//! The floor of hybrid time: what was promised to peers must hold after a restart too. And the floor of the log: below
//! which position it was on disk.
//!
//! A heartbeat says that all later entries have a greater time. Two slots in one small file keep that true. The *said*
//! slot is handed to the kernel before each heartbeat and counts while the machine stays up. The *reserved* slot is on
//! disk and lies ahead: the clock never passes it before it is raised, so after a crash of the machine time goes on
//! from there. Both also carry up to where the log was known to be on disk.
//!
//! The *synced* slot says that too, after each fsync of the log, and so guards the log's last records, which no later
//! record speaks for. It is written when the log's fsync has returned and before anybody learns of it. So whatever is
//! in the slot was on disk, whenever the slot itself gets there; and as the kernel keeps what it was given, the slot
//! covers all that a killed process answered as durable. After a crash of the machine the slot may be old: forcing it
//! too before each answer would double the price of one. Under load that is no loss, since each batch carries the
//! position as well and is on disk with it; when the log falls silent, the slot is forced once. What remains is damage
//! to the last batch together with a crash of the machine within about a second of its answer: that is cut, not
//! refused, under a new incarnation. To claim the position *before* the log's fsync would save nothing: a crash between
//! the two would then refuse a log that merely lost what nobody was promised.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use geode_crdt::HybridTime;

use crate::error::OpenError;

/// How far ahead of the wall clock time is reserved, in microseconds: a machine takes about as long to start again.
const RESERVE_US: u64 = 10_000_000;
/// How far ahead of hybrid time it is reserved at least, where that is itself ahead of the wall clock, as after a quick
/// start: each entry then takes a microsecond. Less than a machine takes to start again, so that one that crashes over and
/// over does not drive time away from the wall clock.
const SLACK_US: u64 = 1_000_000;
/// Bytes of a slot: time, position, version, crc32 of what stands before it. In any version the last two stand here, so
/// that every release can tell a newer slot from a damaged one.
const SLOT: usize = 24;
const VERSION: u32 = 1;
/// The slots stand in different sectors, so that a torn write hurts one of them at most.
const SAID: u64 = 0;
const RESERVED: u64 = 4096;
/// Its time is not used.
const SYNCED: u64 = 8192;

/// What one slot says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) time: HybridTime,
    /// Up to where the log was on disk.
    pub(crate) synced: u64,
}

/// What the file says; all of it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) said: Slot,
    pub(crate) reserved: Slot,
    /// Up to where the log was on disk, by the greatest of the slots.
    pub(crate) synced: u64,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Floor {
    file: File,
    /// Reads the wall clock.
    wall: fn() -> HybridTime,
    /// The clock as the data thread last told it.
    clock: AtomicU64,
    said: Mutex<Slot>,
    reserved: AtomicU64,
    renewing: Mutex<()>,
    /// Whether the synced slot was written and not forced onto the disk since.
    unforced: AtomicBool,
}

impl Floor {
    /// Opens or makes the file and reads the slots. A slot that is damaged or was never written is zero; one that cannot be
    /// read is an error, as it may say more, and so is one of a newer release, whose promises would be forgotten.
    pub(crate) fn open(path: &Path, wall: fn() -> HybridTime) -> Result<(Self, Found), OpenError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(OpenError::io(path))?;
        let slot = |offset| known(path, read(&file, offset).map_err(OpenError::io(path))?);
        let (said, reserved) = (slot(SAID)?, slot(RESERVED)?);
        let synced = said.synced.max(reserved.synced).max(slot(SYNCED)?.synced);
        let floor = Self {
            file,
            wall,
            clock: AtomicU64::new(0),
            said: Mutex::new(said),
            reserved: AtomicU64::new(reserved.time.0),
            renewing: Mutex::new(()),
            unforced: AtomicBool::new(false),
        };
        Ok((floor, Found { said, reserved, synced }))
    }

    /// Up to which time the clock may go.
    pub(crate) fn reserved(&self) -> HybridTime {
        HybridTime(self.reserved.load(Ordering::Acquire))
    }

    /// Takes note of the clock, for [`Self::renew`].
    pub(crate) fn observe(&self, clock: HybridTime) {
        self.clock.fetch_max(clock.0, Ordering::Relaxed);
    }

    /// Puts a time into the kernel that is about to be promised. It never falls: two threads say it.
    pub(crate) fn say(&self, time: HybridTime, synced: u64) -> io::Result<()> {
        let mut said = lock(&self.said);
        let slot = Slot { time: time.max(said.time), synced: synced.max(said.synced) };
        self.file.write_all_at(&encode(slot), SAID)?;
        *said = slot;
        Ok(())
    }

    /// Says the clock as it was last told: what was written up to then may be lost, its time must not be used again.
    pub(crate) fn say_clock(&self, synced: u64) -> io::Result<()> {
        self.say(HybridTime(self.clock.load(Ordering::Relaxed)), synced)
    }

    /// Says that the log is on disk up to `synced`. Costs a small write into the kernel; the last to write stands.
    pub(crate) fn say_synced(&self, synced: u64) -> io::Result<()> {
        self.file.write_all_at(&encode(Slot { time: HybridTime(0), synced }), SYNCED)?;
        self.unforced.store(true, Ordering::Release);
        Ok(())
    }

    /// Forces the synced slot onto the disk if that was not done since it was written. Blocks on the disk.
    pub(crate) fn force_synced(&self) -> io::Result<()> {
        if self.unforced.swap(false, Ordering::AcqRel) { self.file.sync_data() } else { Ok(()) }
    }

    /// Reserves more time if half of it is used up: by the wall clock, which the next entry may follow, or by hybrid time.
    /// Blocks on the disk.
    pub(crate) fn renew(&self, synced: u64) -> io::Result<()> {
        let (wall, clock) = ((self.wall)().0, self.clock.load(Ordering::Relaxed));
        let reserved = self.reserved().0;
        if wall + RESERVE_US / 2 <= reserved && clock + SLACK_US / 2 <= reserved {
            return Ok(());
        }
        self.reserve(HybridTime((wall + RESERVE_US).max(clock + SLACK_US)), synced)
    }

    /// Reserves time up to exactly `time`.
    pub(crate) fn reserve(&self, time: HybridTime, synced: u64) -> io::Result<()> {
        let _one = lock(&self.renewing);
        self.file.write_all_at(&encode(Slot { time, synced }), RESERVED)?;
        self.unforced.store(false, Ordering::Release);
        self.file.sync_data()?;
        self.reserved.store(time.0, Ordering::Release);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while these are locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encode(slot: Slot) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[..8].copy_from_slice(&slot.time.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&slot.synced.to_le_bytes());
    bytes[16..20].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a slot says to this release; zero if it is damaged or was never written.
fn known(path: &Path, read: Option<(u32, Slot)>) -> Result<Slot, OpenError> {
    match read {
        Some((version, _)) if version > VERSION => {
            let (found, known) = (u64::from(version), u64::from(VERSION));
            Err(OpenError::NewerFormat { path: path.to_owned(), found, known })
        }
        read => Ok(read.map(|(_, slot)| slot).unwrap_or_default()),
    }
}

/// A slot and its version; `None` if it is damaged or was never written.
fn read(file: &File, offset: u64) -> io::Result<Option<(u32, Slot)>> {
    let mut bytes = [0; SLOT];
    match file.read_exact_at(&mut bytes, offset) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        Err(_) => Ok(None),
        Ok(()) => Ok(decode(&bytes)),
    }
}

fn decode(bytes: &[u8; SLOT]) -> Option<(u32, Slot)> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
    let half = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
    let slot = Slot { time: HybridTime(word(0)?), synced: word(8)? };
    (half(20)? == crc32fast::hash(&bytes[..20])).then_some((half(16)?, slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clock");
        let (floor, _) = Floor::open(&path, || HybridTime(1)).unwrap();
        floor.say(HybridTime(7), 3).unwrap();
        let said = Slot { time: HybridTime(7), synced: 3 };
        assert_eq!(read(&File::open(&path).unwrap(), SAID).unwrap(), Some((VERSION, said)));
        assert_eq!(read(&File::open(&path).unwrap(), SYNCED).unwrap(), None);
        // As on a failing disk: there, but not to be read.
        let unreadable = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(read(&unreadable, SAID).is_err());
    }

    #[test]
    fn a_slot_of_a_newer_release_is_refused_and_a_damaged_one_is_not() {
        for offset in [SAID, RESERVED, SYNCED] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("clock");
            let mut bytes = encode(Slot { time: HybridTime(7), synced: 3 });
            bytes[16..20].copy_from_slice(&(VERSION + 1).to_le_bytes());
            let open = |bytes: &[u8]| {
                let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
                file.write_all_at(bytes, offset).unwrap();
                Floor::open(&path, || HybridTime(1)).map(|(_, found)| found.synced)
            };
            // Its checksum is not its own, so its version is nobody's word.
            assert_eq!(open(&bytes).unwrap(), 0);
            let crc = crc32fast::hash(&bytes[..20]);
            bytes[20..].copy_from_slice(&crc.to_le_bytes());
            let refused = open(&bytes).unwrap_err().to_string();
            assert!(refused.contains("clock has format 2, this release knows up to 1"), "{refused}");
        }
    }
}
