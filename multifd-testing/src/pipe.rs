//! Channels through memory: bounded, and with a peer that can be made to misbehave.

use multifd_core::{
    Arrival, ChannelError, ChannelSource, Message, Progress, RecvChannel, SendChannel, Transport,
    Unblock, WriteFlags,
};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How many bytes may be under way.
const CAPACITY: usize = 1 << 20;
/// How long a reader waits before it says that nothing comes.
const TICK: Duration = Duration::from_millis(20);

/// What became of the sending end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum SendingEnd {
    #[default]
    Open,
    Closed,
    /// It was dropped before it was closed.
    Dropped,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    sending: SendingEnd,
    /// The receiving end has gone away.
    left: bool,
    stopped: bool,
}

/// One direction of one channel.
#[derive(Clone, Default)]
pub struct Pipe {
    shared: Arc<(Mutex<State>, Condvar)>,
    /// Sending fails with this message number.
    pub fail_at: Option<usize>,
    progress: Option<Arc<Progress>>,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    /// A channel whose peer sends exactly these bytes, then ends it.
    pub fn script(bytes: &[u8]) -> Self {
        let pipe = Self::default();
        pipe.feed(bytes);
        pipe.end();
        pipe
    }

    /// The peer sends these bytes.
    pub fn feed(&self, bytes: &[u8]) {
        self.state().bytes.extend(bytes);
        self.shared.1.notify_all();
    }

    /// All bytes that have been sent and not received.
    pub fn taken(&self) -> Vec<u8> {
        self.state().bytes.iter().copied().collect()
    }

    /// The peer ends the channel in order.
    pub fn end(&self) {
        self.state().sending = SendingEnd::Closed;
        self.shared.1.notify_all();
    }

    /// The sending end. A reader sees a failure if it is dropped before it is closed.
    pub fn sender(&self) -> Box<dyn SendChannel> {
        Box::new(PipeSender {
            pipe: self.clone(),
            sent: 0,
            closed: false,
        })
    }

    /// Handles of this pipe that are alive, this one included.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// Writes all of `bytes`, waiting for space.
    pub(crate) fn write_all(&self, bytes: &[u8]) -> Result<(), ChannelError> {
        let full =
            |state: &mut State| state.bytes.len() > CAPACITY && !state.stopped && !state.left;
        let mut state = self.shared.1.wait_while(self.state(), full).unwrap();
        if state.stopped {
            return Err(ChannelError::Stopped);
        }
        if state.left {
            return Err(ChannelError::Peer("the receiving end has gone away".into()));
        }
        state.bytes.extend(bytes);
        self.shared.1.notify_all();
        Ok(())
    }

    /// Lets the sending end see that nobody reads any more.
    pub(crate) fn leave(&self) {
        self.state().left = true;
        self.shared.1.notify_all();
    }

    /// Reads some bytes: none at an orderly end, `None` if nothing came for a moment.
    pub(crate) fn read_some(&self, buffer: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        let waiting = |state: &mut State| {
            state.bytes.is_empty() && state.sending == SendingEnd::Open && !state.stopped
        };
        let waited = self
            .shared
            .1
            .wait_timeout_while(self.state(), TICK, waiting);
        let (mut state, _) = waited.unwrap();
        if state.stopped {
            return Err(ChannelError::Stopped);
        }
        if state.bytes.is_empty() {
            return match state.sending {
                SendingEnd::Open => Ok(None),
                SendingEnd::Closed => Ok(Some(0)),
                SendingEnd::Dropped => Err(broken()),
            };
        }
        let count = buffer.len().min(state.bytes.len());
        for (to, from) in buffer.iter_mut().zip(state.bytes.drain(..count)) {
            *to = from;
        }
        self.shared.1.notify_all();
        Ok(Some(count))
    }

    /// Breaks the pipe: a reader sees a failure after the bytes.
    pub(crate) fn break_off(&self) {
        self.state().sending = SendingEnd::Dropped;
        self.shared.1.notify_all();
    }
}

fn broken() -> ChannelError {
    ChannelError::Peer("the sending end was dropped before it was closed".into())
}

impl Unblock for Pipe {
    fn unblock(&self) {
        self.state().stopped = true;
        self.shared.1.notify_all();
    }
}

/// The sending end of a pipe.
struct PipeSender {
    pipe: Pipe,
    sent: usize,
    closed: bool,
}

impl SendChannel for PipeSender {
    fn send(&mut self, message: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        self.sent += 1;
        if self.pipe.fail_at == Some(self.sent) {
            return Err(ChannelError::Peer("the cable is cut".into()));
        }
        for iov in message.iovs() {
            let mut bytes = vec![0; iov.len()];
            iov.copy_to(&mut bytes);
            self.pipe.write_all(&bytes)?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), ChannelError> {
        self.closed = true;
        self.pipe.end();
        Ok(())
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.pipe.clone()))
    }
}

impl Drop for PipeSender {
    fn drop(&mut self) {
        if !self.closed {
            self.pipe.break_off();
        }
    }
}

impl RecvChannel for Pipe {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let mut received = 0;
        let expected = buffer.len();
        let mut idle = Duration::ZERO;
        while received < expected {
            match self.read_some(&mut buffer[received..])? {
                Some(0) if received == 0 => return Ok(Arrival::End),
                Some(0) => return Err(ChannelError::Closed { received, expected }),
                Some(count) => {
                    received += count;
                    idle = Duration::ZERO;
                    if let Some(progress) = &self.progress {
                        progress.touch();
                    }
                }
                None if received == 0 => return Ok(Arrival::Idle { waited: TICK }),
                None => {
                    idle += TICK;
                    let deadline = Duration::from_secs(2);
                    if idle >= deadline {
                        return Err(ChannelError::Stalled { deadline });
                    }
                }
            }
        }
        Ok(Arrival::Message)
    }

    fn set_progress(&mut self, progress: Arc<Progress>) {
        self.progress = Some(progress);
    }

    fn progress(&self) -> Option<&Progress> {
        self.progress.as_deref()
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}

/// A transport that opens channel `i` as pipe `i`.
#[derive(Debug, Clone)]
pub struct Pipes(pub Vec<Pipe>);

impl Pipes {
    /// As many pipes.
    pub fn new(channels: u8) -> Self {
        Self((0..channels).map(|_| Pipe::default()).collect())
    }
}

impl Transport for Pipes {
    fn open(&self, id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        let pipe = self.0.get(usize::from(id));
        let pipe = pipe.ok_or_else(|| ChannelError::Peer(format!("there is no pipe {id}")))?;
        Ok(pipe.sender())
    }
}

/// The receiving ends of [`Pipes`], in their order.
#[derive(Debug)]
pub struct PipesEnd(VecDeque<Pipe>);

impl PipesEnd {
    /// The other ends of these pipes.
    pub fn of(pipes: &Pipes) -> Self {
        Self(pipes.0.iter().cloned().collect())
    }
}

impl ChannelSource for PipesEnd {
    fn next_channel(&mut self, _: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        let next = self.0.pop_front();
        Ok(next.map(|pipe| Box::new(pipe) as Box<dyn RecvChannel>))
    }
}
