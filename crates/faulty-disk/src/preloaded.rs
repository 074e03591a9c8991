//! The functions that take the place of the C library's.
//!
//! # Safety
//! Every function here has the name, the arguments and the meaning of the function of POSIX that it replaces, and passes
//! its arguments to the kernel unchanged or fails without looking at them; so whoever may call the original may call it.
//! The kernel checks descriptors and pointers that it is given. Buffers of our own are arrays on the stack that outlive
//! the call they are lent to, with their exact length. Nothing here allocates, locks, or calls what it replaces, so it may
//! be called anywhere, also before `main` and from a signal's handler; state is atomic integers.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use libc::{clockid_t, mode_t, off64_t, size_t, ssize_t, timespec};

use crate::control::{self, CONTROL_BYTES, Control, Reads, Synced, Syncs, Writes};

/// Longer paths are nobody's data directory in a test.
const LONGEST_PATH: usize = 512;
const BOOT_ID: &CStr = c"/proc/sys/kernel/random/boot_id";

static OPENED: AtomicBool = AtomicBool::new(false);
static CONTROL: AtomicI32 = AtomicI32::new(-1);
static JOURNAL: AtomicI32 = AtomicI32::new(-1);
/// Bytes that were written since the fault of this number began.
static NUMBER: AtomicU32 = AtomicU32::new(0);
static USED: AtomicU64 = AtomicU64::new(0);

/// An environment variable, as it stands in the environment.
fn variable(name: &str) -> Option<&'static CStr> {
    let mut zeroed = [0u8; 64];
    zeroed.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    // SAFETY: the name ends in a zero; what getenv returns stays, as nothing in a geode changes its environment.
    unsafe {
        let value = libc::getenv(zeroed.as_ptr().cast());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    }
}

fn system_open(path: &CStr, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the path ends in a zero.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, mode) as c_int }
}

fn control() -> Control {
    if !OPENED.swap(true, Ordering::AcqRel) {
        let open =
            |name, flags| variable(name).map_or(-1, |path| system_open(path, flags | libc::O_CLOEXEC, 0));
        CONTROL.store(open(control::CONTROL, libc::O_RDONLY), Ordering::Release);
        JOURNAL.store(open(control::JOURNAL, libc::O_WRONLY | libc::O_APPEND), Ordering::Release);
    }
    let mut bytes = [0u8; CONTROL_BYTES];
    let file = CONTROL.load(Ordering::Acquire);
    // SAFETY: the buffer is as long as is said.
    let read = unsafe { libc::syscall(libc::SYS_pread64, file, bytes.as_mut_ptr(), CONTROL_BYTES, 0) };
    if usize::try_from(read) == Ok(CONTROL_BYTES) { Control::decode(&bytes) } else { Control::default() }
}

/// Whether a descriptor is a file below the data directory.
fn is_data(file: c_int) -> bool {
    let Some(data) = variable(control::DATA) else { return false };
    let mut link = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
    let mut digits = [0u8; 10];
    let (mut left, mut count) = (file.unsigned_abs(), 0);
    while count == 0 || left > 0 {
        digits[count] = b'0' + (left % 10) as u8;
        left /= 10;
        count += 1;
    }
    for (place, digit) in digits[..count].iter().rev().enumerate() {
        link[14 + place] = *digit;
    }
    let mut path = [0u8; LONGEST_PATH];
    // SAFETY: the link's path ends in a zero; the buffer is as long as is said.
    let length = unsafe {
        let (from, to) = (link.as_ptr(), path.as_mut_ptr());
        libc::syscall(libc::SYS_readlinkat, libc::AT_FDCWD, from, to, LONGEST_PATH)
    };
    usize::try_from(length).is_ok_and(|length| path[..length].starts_with(data.to_bytes()))
}

/// Inode and length.
fn inode_and_length(file: c_int) -> Option<(u64, u64)> {
    // SAFETY: zeroes are a valid `stat`, which the kernel fills.
    unsafe {
        let mut stat: libc::stat64 = std::mem::zeroed();
        (libc::fstat64(file, &raw mut stat) == 0).then_some((stat.st_ino, stat.st_size.unsigned_abs()))
    }
}

fn fail(error: c_int) -> c_long {
    // SAFETY: the thread's own errno.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// How many of the bytes that end at `end` of the file may be written, or the error.
fn allowed(file: c_int, count: size_t, at: Option<u64>) -> Result<size_t, c_int> {
    let control = control();
    let error = match control.writes {
        Writes::Work => return Ok(count),
        Writes::NoSpace => libc::ENOSPC,
        Writes::Error => libc::EIO,
        Writes::ReadOnly => libc::EROFS,
    };
    if !is_data(file) {
        return Ok(count);
    }
    if control.writes == Writes::NoSpace {
        let length = inode_and_length(file).map_or(0, |(_, length)| length);
        if at.is_some_and(|at| at + count as u64 <= length) {
            return Ok(count);
        }
    }
    if NUMBER.swap(control.number, Ordering::AcqRel) != control.number {
        USED.store(0, Ordering::Release);
    }
    let used = USED.fetch_add(count as u64, Ordering::AcqRel);
    let left = control.room.saturating_sub(used).min(count as u64) as size_t;
    if left == 0 && count > 0 { Err(error) } else { Ok(left) }
}

/// Whether a descriptor cannot be read now.
fn is_unreadable(file: c_int) -> bool {
    control().reads == Reads::Error && is_data(file)
}

/// Whether what lies there cannot be changed now.
fn is_frozen(path: &CStr) -> bool {
    control().writes == Writes::ReadOnly
        && variable(control::DATA).is_some_and(|data| path.to_bytes().starts_with(data.to_bytes()))
}

fn sync(file: c_int, call: c_long) -> c_int {
    // What was written when the sync began is what it promises.
    let held = inode_and_length(file).filter(|_| is_data(file));
    let Some((inode, length)) = held else {
        // SAFETY: as the original.
        return unsafe { libc::syscall(call, file) as c_int };
    };
    let failed = match control().syncs {
        Syncs::Lie => return 0,
        Syncs::Error => true,
        // SAFETY: as the original.
        Syncs::Work => unsafe { libc::syscall(call, file) != 0 },
    };
    note(Synced { inode, length, failed, begins: false });
    if failed { fail(libc::EIO) as c_int } else { 0 }
}

fn note(note: Synced) {
    let (note, journal) = (note.encode(), JOURNAL.load(Ordering::Acquire));
    // SAFETY: the buffer is as long as is said. Appends of so few bytes are whole.
    unsafe { libc::syscall(libc::SYS_write, journal, note.as_ptr(), note.len()) };
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    match allowed(file, count, None) {
        // SAFETY: as the original.
        Ok(count) => unsafe { libc::syscall(libc::SYS_write, file, bytes, count) as ssize_t },
        Err(error) => fail(error) as ssize_t,
    }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(file: c_int, bytes: *const c_void, count: size_t, at: off64_t) -> ssize_t {
    match allowed(file, count, Some(at.unsigned_abs())) {
        // SAFETY: as the original.
        Ok(count) => unsafe { libc::syscall(libc::SYS_pwrite64, file, bytes, count, at) as ssize_t },
        Err(error) => fail(error) as ssize_t,
    }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(file: c_int, bytes: *const c_void, count: size_t, at: off64_t) -> ssize_t {
    // SAFETY: the same function where offsets have 64 bits.
    unsafe { pwrite64(file, bytes, count, at) }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(file: c_int, bytes: *mut c_void, count: size_t) -> ssize_t {
    if is_unreadable(file) {
        return fail(libc::EIO) as ssize_t;
    }
    // SAFETY: as the original.
    unsafe { libc::syscall(libc::SYS_read, file, bytes, count) as ssize_t }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread64(file: c_int, bytes: *mut c_void, count: size_t, at: off64_t) -> ssize_t {
    if is_unreadable(file) {
        return fail(libc::EIO) as ssize_t;
    }
    // SAFETY: as the original.
    unsafe { libc::syscall(libc::SYS_pread64, file, bytes, count, at) as ssize_t }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread(file: c_int, bytes: *mut c_void, count: size_t, at: off64_t) -> ssize_t {
    // SAFETY: the same function where offsets have 64 bits.
    unsafe { pread64(file, bytes, count, at) }
}

/// As POSIX says.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(file: c_int, length: off64_t) -> c_int {
    if control().writes == Writes::ReadOnly && is_data(file) {
        return fail(libc::EROFS) as c_int;
    }
    // SAFETY: as the original.
    unsafe { libc::syscall(libc::SYS_ftruncate, file, length) as c_int }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller gives paths that end in a zero.
    if unsafe { is_frozen(CStr::from_ptr(from)) || is_frozen(CStr::from_ptr(to)) } {
        return fail(libc::EROFS) as c_int;
    }
    let here = libc::AT_FDCWD;
    // SAFETY: as the original.
    unsafe { libc::syscall(libc::SYS_renameat2, here, from, here, to, 0) as c_int }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller gives a path that ends in a zero.
    if unsafe { is_frozen(CStr::from_ptr(path)) } {
        return fail(libc::EROFS) as c_int;
    }
    // SAFETY: as the original.
    unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int }
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller gives a path that ends in a zero.
    if unsafe { is_frozen(CStr::from_ptr(path)) } {
        return fail(libc::EROFS) as c_int;
    }
    // SAFETY: as the original.
    unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) as c_int }
}

/// As POSIX says.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    sync(file, libc::SYS_fsync)
}

/// As POSIX says.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    sync(file, libc::SYS_fdatasync)
}

/// As POSIX says. The original takes the mode only if a file may be made; here it is always passed on, as the kernel
/// ignores it otherwise.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller gives a path that ends in a zero.
    let wanted = unsafe { CStr::from_ptr(path) };
    let changes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    if changes && is_frozen(wanted) {
        return fail(libc::EROFS) as c_int;
    }
    let boot = if wanted == BOOT_ID { variable(control::BOOT) } else { None };
    let file = system_open(boot.unwrap_or(wanted), flags, mode);
    if file >= 0
        && flags & libc::O_CREAT != 0
        && is_data(file)
        && let Some((inode, 0)) = inode_and_length(file)
    {
        // The journal is open.
        control();
        note(Synced { inode, length: 0, failed: false, begins: true });
    }
    file
}

/// As POSIX says.
///
/// # Safety
/// As POSIX says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: as the original.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    let skew_us = if clock == libc::CLOCK_REALTIME { control().skew_us } else { 0 };
    if result == 0 && skew_us != 0 {
        // SAFETY: the kernel has just written there.
        let time = unsafe { &mut *time };
        let now_ns = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        let shown_ns = (now_ns + i128::from(skew_us) * 1_000).max(0);
        time.tv_sec = (shown_ns / 1_000_000_000) as libc::time_t;
        time.tv_nsec = (shown_ns % 1_000_000_000) as c_long;
    }
    result
}
