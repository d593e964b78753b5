//! Has the kernel write a file to its disk while it still grows, so that little is left to be
//! synced at the end.

use crate::sys;
use std::fs::File;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is asked to.
const EVERY: Duration = Duration::from_millis(50);

/// Starts the write-back of a file again and again, on a thread of its own, until it is dropped.
/// Whoever writes to the file, this process or another, is not held up. Nothing comes of an error:
/// syncing the file meets it again.
#[derive(Debug)]
pub struct WriteBack {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl WriteBack {
    /// Begins. A file in memory needs none of it, and gets none.
    pub fn start(file: &File) -> Self {
        let mut this = Self {
            stop: None,
            thread: None,
        };
        let Some(file) = file
            .try_clone()
            .ok()
            .filter(|file| !sys::is_in_memory(file))
        else {
            return this;
        };
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("multifd-sync".into())
            .spawn(move || {
                while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    sys::start_write_back(&file);
                }
            });
        this.thread = thread.ok();
        this.stop = Some(stop);
        this
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
