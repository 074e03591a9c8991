//! Room on the disk, taken ahead of what is written, so that a full disk is met before a command runs and not after.
//!
//! Blocks are allocated behind the end of the file (`FALLOC_FL_KEEP_SIZE`), so the file ends where its last record ends,
//! as recovery wants it. A file system that cannot do so is written without; then a full disk is met by the write itself.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// What is always to be had behind the last record: more than the commands of one batch write, but for those with huge
/// values.
pub(crate) const AHEAD: u64 = 2 << 20;
/// What is taken at once, so that the file system is asked rarely.
const STEP: u64 = 8 << 20;

/// The room behind the end of one file.
#[derive(Debug)]
pub(crate) struct Room {
    /// Up to which length of the file blocks are allocated.
    end: u64,
    /// Whether the file system can allocate ahead.
    can: bool,
}

impl Room {
    /// Nothing is allocated yet.
    pub(crate) const fn new() -> Self {
        Self { end: 0, can: true }
    }

    /// Sees to it that a file of `length` bytes can grow by `bytes`, and takes more than that if there is enough. Costs
    /// nothing while there is room.
    ///
    /// # Errors
    /// There is not so much room.
    pub(crate) fn ensure(&mut self, file: &File, length: u64, bytes: u64) -> io::Result<()> {
        if bytes == 0 || length + bytes <= self.end || !self.can {
            return Ok(());
        }
        let taken = self.take(file, length, bytes + STEP).or_else(|_| self.take(file, length, bytes));
        match taken {
            // As on ZFS or NFS: the write will tell.
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => {
                self.can = false;
                Ok(())
            }
            Err(error) => {
                self.give_back(file, length);
                Err(error.into())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Gives back what is allocated behind the end of a file of `length` bytes, and cuts what is beyond.
    pub(crate) fn give_back(&mut self, file: &File, length: u64) {
        self.end = 0;
        // If it fails, nothing is wrong but that the blocks stay allocated, or that what is cut later is still there.
        let _ = file.set_len(length);
    }

    fn take(&mut self, file: &File, length: u64, bytes: u64) -> rustix::io::Result<()> {
        loop {
            match fallocate(file, FallocateFlags::KEEP_SIZE, length, bytes) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.end = length + bytes;
                    return Ok(());
                }
            }
        }
    }
}
