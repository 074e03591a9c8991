//! Where a command writes its answer. Protocols implement it; commands know only the shapes that Redis answers have.

/// A sink for exactly one reply (arrays count the replies that follow in them).
///
/// Version 2 of the protocol knows fewer shapes: a map is an array of twice the length, a set an array, a double and a
/// verbatim string a bulk string, a boolean an integer, null a null bulk string. Implementations choose.
pub trait Reply {
    /// `+text`
    fn simple(&mut self, text: &str);
    /// `-message`; begins with the upper-case code, e.g. `ERR` or `WRONGTYPE`.
    fn error(&mut self, message: &str);
    /// `:value`
    fn integer(&mut self, value: i64);
    /// A bulk string.
    fn bulk(&mut self, bytes: &[u8]);
    /// The null reply of a missing value.
    fn null(&mut self);
    /// The null reply of a missing array (version 2 tells them apart).
    fn null_array(&mut self);
    /// The head of an array of `length` replies.
    fn array(&mut self, length: usize);
    /// The head of a map of `length` pairs.
    fn map(&mut self, length: usize);
    /// The head of a set of `length` replies.
    fn set(&mut self, length: usize);
    /// A float.
    fn double(&mut self, value: f64);
    /// Where the reply stands, for [`Self::rewind`].
    fn mark(&self) -> usize;
    /// Takes back everything since the mark: the command has to be run again later.
    fn rewind(&mut self, mark: usize);
}
