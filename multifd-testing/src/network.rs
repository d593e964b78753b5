//! Whole migrations through memory: main connections and channels, without a system call.

use crate::Pipe;
use multifd_core::sync::lock;
use multifd_core::{
    Arrival, ChannelError, ChannelSource, Incoming, MainConnection, MainListener, MainTransport,
    Outgoing, Progress, RecvChannel, SendChannel, Transport, Unblock,
};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long a read, or a wait, may take.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    mains: VecDeque<End>,
    channels: VecDeque<Pipe>,
    stopped: bool,
}

/// A network of one listener, in memory. As a transport it connects to it.
#[derive(Clone, Default)]
pub struct Network {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

impl Network {
    /// Nothing connected yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The listener.
    pub fn listener(&self) -> NetworkListener {
        NetworkListener(self.clone())
    }
}

impl Transport for Network {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        let pipe = Pipe::default();
        let mut state = lock(&self.shared.0);
        if state.stopped {
            return Err(ChannelError::Peer("nobody listens any more".into()));
        }
        state.channels.push_back(pipe.clone());
        drop(state);
        self.shared.1.notify_all();
        Ok(pipe.sender())
    }
}

impl MainTransport for Network {
    fn connect_main(&self) -> Result<Outgoing, ChannelError> {
        let (to, from) = (Pipe::default(), Pipe::default());
        let near = End::new(from.clone(), to.clone());
        lock(&self.shared.0).mains.push_back(End::new(to, from));
        self.shared.1.notify_all();
        Outgoing::new(Box::new(near))
    }
}

/// The listener of a [`Network`].
#[derive(Debug)]
pub struct NetworkListener(Network);

impl ChannelSource for NetworkListener {
    fn next_channel(&mut self, wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        let (state, changed) = &*self.0.shared;
        let nobody = |state: &mut State| wait && state.channels.is_empty() && !state.stopped;
        let waited = changed.wait_timeout_while(lock(state), DEADLINE, nobody);
        let mut state = waited.unwrap().0;
        if state.stopped {
            return Err(ChannelError::Stopped);
        }
        let next = state.channels.pop_front();
        Ok(next.map(|pipe| Box::new(Taken(pipe)) as Box<dyn RecvChannel>))
    }
}

/// With the listener go the connections that nobody took.
impl Drop for NetworkListener {
    fn drop(&mut self) {
        let mut state = lock(&self.0.shared.0);
        state.stopped = true;
        state.mains.clear();
        state.channels.drain(..).for_each(|pipe| pipe.leave());
    }
}

/// A channel that was taken from the listener: its sender notices when it is dropped.
struct Taken(Pipe);

impl RecvChannel for Taken {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        self.0.recv_start(buffer)
    }

    fn set_progress(&mut self, progress: Arc<Progress>) {
        self.0.set_progress(progress);
    }

    fn progress(&self) -> Option<&Progress> {
        self.0.progress()
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        self.0.unblock_handle()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl MainListener for NetworkListener {
    fn accept_main(&mut self) -> Result<Incoming, ChannelError> {
        let (state, changed) = &*self.0.shared;
        let nobody = |state: &mut State| state.mains.is_empty() && !state.stopped;
        let waited = changed.wait_timeout_while(lock(state), DEADLINE, nobody);
        let mut state = waited.unwrap().0;
        match state.mains.pop_front() {
            _ if state.stopped => Err(ChannelError::Stopped),
            Some(end) => Incoming::new(Box::new(end)),
            None => Err(ChannelError::Stalled { deadline: DEADLINE }),
        }
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Stop(self.0.clone())))
    }
}

struct Stop(Network);

impl Unblock for Stop {
    fn unblock(&self) {
        lock(&self.0.shared.0).stopped = true;
        self.0.shared.1.notify_all();
    }
}

/// What two handles of one end share; the last to go closes it.
struct Life {
    out: Pipe,
    fail: Mutex<bool>,
}

impl Drop for Life {
    fn drop(&mut self) {
        if *lock(&self.fail) {
            self.out.break_off();
        } else {
            self.out.end();
        }
    }
}

/// One end of a main connection.
struct End {
    from: Pipe,
    life: Arc<Life>,
}

impl End {
    fn new(from: Pipe, to: Pipe) -> Self {
        Self {
            from,
            life: Arc::new(Life {
                out: to,
                fail: Mutex::new(true),
            }),
        }
    }
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let since = Instant::now();
        loop {
            match self.from.read_some(buffer).map_err(io::Error::other)? {
                Some(count) => return Ok(count),
                None if since.elapsed() >= DEADLINE => return Err(io::ErrorKind::TimedOut.into()),
                None => {}
            }
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.life.out.write_all(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MainConnection for End {
    fn second(&mut self) -> Result<Box<dyn MainConnection>, ChannelError> {
        Ok(Box::new(Self {
            from: self.from.clone(),
            life: Arc::clone(&self.life),
        }))
    }

    fn fail_on_close(&mut self, fail: bool) -> Result<(), ChannelError> {
        *lock(&self.life.fail) = fail;
        Ok(())
    }

    fn end_writing(&mut self) -> Result<(), ChannelError> {
        self.life.out.end();
        Ok(())
    }

    fn wait_closed(&mut self) -> Result<(), ChannelError> {
        let since = Instant::now();
        loop {
            match self.from.read_some(&mut [0])? {
                Some(0) => return Ok(()),
                Some(_) => return Err(ChannelError::Peer("the destination has failed".into())),
                None if since.elapsed() >= DEADLINE => {
                    return Err(ChannelError::Stalled { deadline: DEADLINE });
                }
                None => {}
            }
        }
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Both(self.from.clone(), self.life.out.clone())))
    }

    fn read_unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.from.clone()))
    }
}

struct Both(Pipe, Pipe);

impl Unblock for Both {
    fn unblock(&self) {
        self.0.unblock();
        self.1.unblock();
    }
}
