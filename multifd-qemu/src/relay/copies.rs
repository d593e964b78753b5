//! Bytes of a main connection that are read twice: once to pass them on, once to follow them.

use multifd_core::Incoming;
use std::io::{self, Read};
use std::sync::mpsc::Receiver;

/// Keeps what is read through it.
pub(super) struct Tee<'a> {
    inner: &'a mut Incoming,
    seen: Vec<u8>,
}

impl<'a> Tee<'a> {
    pub(super) fn new(inner: &'a mut Incoming) -> Self {
        Self {
            inner,
            seen: Vec::new(),
        }
    }

    pub(super) fn into_seen(self) -> Vec<u8> {
        self.seen
    }
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.seen.extend(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// Bytes that have passed, to be read once more.
pub(super) struct Copies {
    now: Vec<u8>,
    at: usize,
    more: Receiver<Vec<u8>>,
}

impl Copies {
    pub(super) fn new(now: Vec<u8>, more: Receiver<Vec<u8>>) -> Self {
        Self { now, at: 0, more }
    }
}

impl Read for Copies {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.now.len() {
            let Ok(next) = self.more.recv() else {
                return Ok(0);
            };
            (self.now, self.at) = (next, 0);
        }
        let n = self.now.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += n;
        Ok(n)
    }
}
