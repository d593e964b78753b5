//! Reading the main channel: big-endian integers and counted names, with the place of every byte
//! known.

use crate::Error;
use multifd_core::{HeldMemory, Progress};
use std::io::{self, Read};
use std::sync::Arc;

const ROOM: usize = 64 << 10;

/// A buffered reader that knows how far it has come, and when to give up.
pub(crate) struct Input<R> {
    from: R,
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
    offset: u64,
    progress: Option<Arc<Progress>>,
    /// Channels look at the same clock.
    has_channels: bool,
}

impl<R: Read> Input<R> {
    /// Reads `from`, which is `offset` bytes into the channel. A read that times out is tried again
    /// until the whole transfer has stalled.
    pub(crate) fn new(from: R, offset: u64, progress: Option<Arc<Progress>>) -> Self {
        Self {
            from,
            buffer: vec![0; ROOM],
            at: 0,
            filled: 0,
            offset,
            progress,
            has_channels: false,
        }
    }

    /// From now on the channels report stalls, as they know which of them it is. The main channel
    /// reports one only if none of them has done so within another deadline.
    pub(crate) fn let_channels_speak(&mut self) {
        self.has_channels = true;
    }

    /// Bytes read so far, from the start of the channel.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Makes at least one byte available; `false` at the end.
    fn more(&mut self, what: &'static str) -> Result<bool, Error> {
        while self.at == self.filled {
            match self.from.read(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    (self.at, self.filled) = (0, n);
                    if let Some(progress) = &self.progress {
                        progress.touch();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock].contains(&e.kind()) =>
                {
                    let deadline = self
                        .progress
                        .as_ref()
                        .map(|p| p.deadline())
                        .unwrap_or_default();
                    // The main channel may be silent for long while the others are busy.
                    if let Some(progress) = &self.progress
                        && progress.quiet()
                            < deadline.saturating_mul(1 + u32::from(self.has_channels))
                    {
                        continue;
                    }
                    return Err(Error::Stalled {
                        offset: self.offset,
                        what,
                        deadline,
                    });
                }
                Err(cause) => {
                    return Err(Error::Io {
                        offset: self.offset,
                        what,
                        cause,
                    });
                }
            }
        }
        Ok(true)
    }

    /// Fills `out`.
    pub(crate) fn fill(&mut self, out: &mut [u8], what: &'static str) -> Result<(), Error> {
        let mut out = out;
        while !out.is_empty() {
            if !self.more(what)? {
                return Err(Error::Truncated {
                    offset: self.offset,
                    what,
                });
            }
            let available = self.buffer.get(self.at..self.filled).unwrap_or_default();
            let n = available.len().min(out.len());
            let (now, rest) = out.split_at_mut(n);
            now.iter_mut()
                .zip(available)
                .for_each(|(to, from)| *to = *from);
            out = rest;
            self.at += n;
            self.offset += n as u64;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Error> {
        Ok(u8::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Error> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        self.array(what)
    }

    /// A name of `len` bytes.
    pub(crate) fn text(&mut self, len: usize, what: &'static str) -> Result<String, Error> {
        let offset = self.offset;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|e| Error::Malformed {
            offset,
            what,
            found: format!("{:?}", String::from_utf8_lossy(e.as_bytes())),
            expected: "UTF-8".into(),
        })
    }

    /// A name after its length in one byte.
    pub(crate) fn name(&mut self, what: &'static str) -> Result<String, Error> {
        let len = self.u8(what)?;
        self.text(len.into(), what)
    }

    /// Reads what must stand here.
    pub(crate) fn expect_u32(&mut self, what: &'static str, expected: u32) -> Result<(), Error> {
        let offset = self.offset;
        let found = self.u32(what)?;
        if found == expected {
            return Ok(());
        }
        Err(Error::Malformed {
            offset,
            what,
            found: format!("{found:#x}"),
            expected: format!("{expected:#x}"),
        })
    }

    /// Everything to the end of the channel, after a byte that was read already; at most `limit`
    /// bytes. Memory for it is taken from `held`, beside what that holds already.
    pub(crate) fn rest(
        &mut self,
        first: u8,
        limit: u64,
        what: &'static str,
        held: &mut HeldMemory,
    ) -> Result<Vec<u8>, Error> {
        let offset = self.offset;
        let before = held.bytes();
        let mut all = vec![first];
        while self.more(what)? {
            let available = self.buffer.get(self.at..self.filled).unwrap_or_default();
            let len = all.len() + available.len();
            if len as u64 > limit {
                return Err(Error::TooLarge {
                    offset,
                    what,
                    found: len as u64,
                    limit,
                });
            }
            if len > all.capacity() {
                // Twice as much each time, so that little is copied; the old is gone before the new
                // is used.
                let capacity = len
                    .max(all.capacity() * 2)
                    .min(usize::try_from(limit).unwrap_or(len).max(len));
                held.grow_to(what, before + capacity as u64)
                    .map_err(|cause| Error::Memory { offset, cause })?;
                all.reserve_exact(capacity - all.len());
            }
            all.extend_from_slice(available);
            self.offset += available.len() as u64;
            self.at = self.filled;
        }
        Ok(all)
    }
}

impl<R: Read + io::Seek> Input<R> {
    /// Goes on at `offset` of the file.
    pub(crate) fn seek(&mut self, offset: u64, what: &'static str) -> Result<(), Error> {
        let at = io::SeekFrom::Start(offset);
        self.from.seek(at).map_err(|cause| Error::Io {
            offset: self.offset,
            what,
            cause,
        })?;
        (self.at, self.filled, self.offset) = (0, 0, offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_millis(20);

    /// Nothing ever comes of it.
    struct Silent;

    impl Read for Silent {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    fn quiet_when_told(has_channels: bool) -> Duration {
        let progress = Arc::new(Progress::new(DEADLINE));
        let mut input = Input::new(Silent, 0, Some(Arc::clone(&progress)));
        if has_channels {
            input.let_channels_speak();
        }
        let error = input.u8("a byte").unwrap_err();
        assert!(matches!(error, Error::Stalled { .. }), "{error}");
        progress.quiet()
    }

    #[test]
    fn a_stall_is_told_after_the_deadline_and_one_more_if_channels_could_tell() {
        assert!(quiet_when_told(false) >= DEADLINE);
        assert!(quiet_when_told(true) >= 2 * DEADLINE);
    }
}
