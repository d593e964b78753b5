//! A TCP proxy that does to connections what bad networks and bad peers do.

use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What happens to one connection, in the direction in which it was made. Places are counted in
/// bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is never passed on, though it was accepted.
    Unaccepted,
    /// Both ends are reset.
    Reset(u64),
    /// The far end sees the end of the stream; the near one nothing.
    HalfClose(u64),
    /// Nothing goes on from here, and nobody is told.
    Stall(u64),
    /// Byte by byte.
    Trickle,
    /// So many bytes a millisecond at most.
    Pace(usize),
}

/// Runs until it is dropped; all its connections end then.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens, as `tcp:HOST:PORT`.
    pub address: String,
    stop: Arc<Stop>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits a moment, or until it is stopped.
    fn wait_a_while(&self) {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.changed
                .wait_timeout_while(stopped, TICK, |stopped| !*stopped),
        );
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a thread that waits for bytes looks whether it should end.
const TICK: Duration = Duration::from_millis(20);

impl Proxy {
    /// Passes connections on to `target` (`tcp:HOST:PORT`); `fault` says what happens to each, by
    /// its number from 0.
    pub fn start(target: &str, fault: impl Fn(usize) -> Fault + Send + 'static) -> Self {
        let target: SocketAddr = target.strip_prefix("tcp:").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap());
        // Buffers of the kernel's own choice would hide a slow connection for megabytes.
        SockRef::from(&listener)
            .set_recv_buffer_size(64 << 10)
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(Stop::default());
        let shared = Arc::clone(&stop);
        let accepting = std::thread::spawn(move || {
            let mut threads = Vec::new();
            let mut count = 0;
            while !shared.is_stopped() {
                match listener.accept() {
                    Ok((near, _)) => {
                        near.set_nonblocking(false).unwrap();
                        let (fault, stop) = (fault(count), Arc::clone(&shared));
                        threads.push(std::thread::spawn(move || {
                            pass(&near, target, fault, &stop);
                        }));
                        count += 1;
                    }
                    // A pace for looking, as the standard library has no wait on a listener.
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
        Self {
            address,
            stop,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self
            .stop
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        let ended = self.accepting.take().unwrap().join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "a proxy's thread panicked"
        );
    }
}

/// How one direction of a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// As it should, or because the proxy ends.
    Orderly,
    /// The connection broke.
    Broken,
    /// The place where a fault is due has been reached.
    Due,
}

/// One connection, to its end.
fn pass(near: &TcpStream, target: SocketAddr, fault: Fault, stop: &Stop) {
    if fault == Fault::Unaccepted {
        while !stop.is_stopped() {
            stop.wait_a_while();
        }
        return;
    }
    let Ok(far) = TcpStream::connect(target) else {
        return;
    };
    far.set_nodelay(true).unwrap();
    for stream in [near, &far] {
        stream.set_read_timeout(Some(TICK)).unwrap();
        stream.set_write_timeout(Some(TICK)).unwrap();
    }
    // Closing the sockets resets the connections then, as one that broke does.
    let reset = || {
        for stream in [near, &far] {
            SockRef::from(stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
    };
    let (broken, sent) = (AtomicBool::new(false), AtomicBool::new(false));
    let ended = || stop.is_stopped() || broken.load(Ordering::Acquire);
    std::thread::scope(|scope| {
        scope.spawn(|| match copy(&far, near, u64::MAX, Fault::None, &ended) {
            End::Broken => {
                reset();
                broken.store(true, Ordering::Release);
            }
            _ if broken.load(Ordering::Acquire) => {}
            // The other thread was told that the connection is reset, which makes it look ended
            // here.
            End::Orderly if !sent.load(Ordering::Acquire) && far.peer_addr().is_err() => {
                reset();
                broken.store(true, Ordering::Release);
            }
            // It may be gone already.
            _ => drop(near.shutdown(Shutdown::Write)),
        });
        let until = match fault {
            Fault::Reset(at) | Fault::HalfClose(at) | Fault::Stall(at) => at,
            _ => u64::MAX,
        };
        match (copy(near, &far, until, fault, &ended), fault) {
            (End::Broken, _) | (End::Due, Fault::Reset(_)) => {
                reset();
                broken.store(true, Ordering::Release);
            }
            (End::Due, Fault::Stall(_)) => {
                while !ended() {
                    stop.wait_a_while();
                }
            }
            _ => {
                sent.store(true, Ordering::Release);
                let _ = far.shutdown(Shutdown::Write);
            }
        }
    });
}

/// Copies up to `until` bytes.
fn copy(
    mut from: &TcpStream,
    mut to: &TcpStream,
    until: u64,
    fault: Fault,
    ended: &dyn Fn() -> bool,
) -> End {
    let again =
        |e: &std::io::Error| [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&e.kind());
    let mut room = vec![0; 64 << 10];
    let mut left = until;
    while left > 0 {
        let most = match fault {
            Fault::Trickle => 1,
            Fault::Pace(bytes) => bytes,
            _ => room.len(),
        };
        let most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = match from.read(&mut room[..most]) {
            Ok(0) => return End::Orderly,
            Ok(n) => n,
            Err(e) if again(&e) && ended() => return End::Orderly,
            Err(e) if again(&e) => continue,
            Err(_) => return End::Broken,
        };
        left -= n as u64;
        let mut written = 0;
        while written < n {
            match to.write(&room[written..n]) {
                Ok(more) => written += more,
                Err(e) if again(&e) && ended() => return End::Orderly,
                Err(e) if again(&e) => {}
                Err(_) => return End::Broken,
            }
        }
        if let Fault::Pace(_) = fault {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    End::Due
}
