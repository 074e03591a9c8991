//! What the tests and the library tell each other, in files, so that neither links the other.
//!
//! The control file holds [`Control`] in [`CONTROL_BYTES`] bytes; the tests write it in one piece, the library reads it at
//! every call. To the journal the library appends a [`Synced`] of [`SYNCED_BYTES`] bytes after each sync,
//! and for each file that is made or emptied.
//! Integers are little-endian.

/// Names the directory below which files fail.
pub const DATA: &str = "GEODE_FAULTY_DISK_DATA";
/// Names the control file.
pub const CONTROL: &str = "GEODE_FAULTY_DISK_CONTROL";
/// Names the journal of syncs.
pub const JOURNAL: &str = "GEODE_FAULTY_DISK_JOURNAL";
/// Names the file that stands for `/proc/sys/kernel/random/boot_id`.
pub const BOOT: &str = "GEODE_FAULTY_DISK_BOOT";

/// How long the control file is.
pub const CONTROL_BYTES: usize = 24;
/// How long a note of the journal is.
pub const SYNCED_BYTES: usize = 24;

/// What goes wrong now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Changes with every fault, so that `room` counts anew.
    pub number: u32,
    /// What writes do.
    pub writes: Writes,
    /// What syncs do.
    pub syncs: Syncs,
    /// What reads do.
    pub reads: Reads,
    /// How many bytes still fit before writes fail.
    pub room: u64,
    /// How far the clock is off, in microseconds.
    pub skew_us: i64,
}

/// What writes below the data directory do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Writes {
    /// As the kernel says.
    #[default]
    Work = 0,
    /// What makes a file longer fails with ENOSPC, after a part of it was written.
    NoSpace = 1,
    /// They fail with EIO.
    Error = 2,
    /// They fail with EROFS, and so does all else that changes what is below the data directory.
    ReadOnly = 3,
}

/// What reads below the data directory do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Reads {
    /// As the kernel says.
    #[default]
    Work = 0,
    /// They fail with EIO.
    Error = 1,
}

/// What syncs below the data directory do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Syncs {
    /// As the kernel says.
    #[default]
    Work = 0,
    /// They fail with EIO, and what they should have written never reaches the disk, whatever later ones say.
    Error = 1,
    /// They say that all is well and write nothing.
    Lie = 2,
}

impl Control {
    /// The bytes of the file.
    pub fn encode(&self) -> [u8; CONTROL_BYTES] {
        let mut bytes = [0; CONTROL_BYTES];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4] = self.writes as u8;
        bytes[5] = self.syncs as u8;
        bytes[6] = self.reads as u8;
        bytes[8..16].copy_from_slice(&self.room.to_le_bytes());
        bytes[16..].copy_from_slice(&self.skew_us.to_le_bytes());
        bytes
    }

    /// What the bytes say. Faults that do not exist are none.
    pub fn decode(bytes: &[u8; CONTROL_BYTES]) -> Self {
        let [a, b, c, d, writes, syncs, reads, ..] = *bytes;
        let word = |at: usize| std::array::from_fn(|byte| bytes[at + byte]);
        Self {
            number: u32::from_le_bytes([a, b, c, d]),
            writes: match writes {
                1 => Writes::NoSpace,
                2 => Writes::Error,
                3 => Writes::ReadOnly,
                _ => Writes::Work,
            },
            syncs: match syncs {
                1 => Syncs::Error,
                2 => Syncs::Lie,
                _ => Syncs::Work,
            },
            reads: if reads == 1 { Reads::Error } else { Reads::Work },
            room: u64::from_le_bytes(word(8)),
            skew_us: i64::from_le_bytes(word(16)),
        }
    }
}

/// A file was forced onto the disk, or that failed; or it was made or emptied, so that its name of old stands for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Which file.
    pub inode: u64,
    /// How long it was when the sync began.
    pub length: u64,
    /// Whether it failed.
    pub failed: bool,
    /// Whether it was not a sync: the file begins.
    pub begins: bool,
}

impl Synced {
    /// The bytes of a note.
    pub fn encode(&self) -> [u8; SYNCED_BYTES] {
        let mut bytes = [0; SYNCED_BYTES];
        bytes[..8].copy_from_slice(&self.inode.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16] = u8::from(self.failed);
        bytes[17] = u8::from(self.begins);
        bytes
    }

    /// What a note says.
    pub fn decode(bytes: &[u8; SYNCED_BYTES]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        Self { inode: word(0), length: word(8), failed: bytes[16] != 0, begins: bytes[17] != 0 }
    }
}
