//! Real sockets of both families: everything arrives whatever the kernel does in between, and
//! nothing waits for ever.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use multifd_core::{
    Arrival, ChannelError, Iov, MainConnection, Message, RamBlock, RecvChannel, SendChannel,
    WriteFlags,
};
use multifd_transport_socket::{SocketOptions, SocketStream};
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn options(stall_ms: u64) -> SocketOptions {
    SocketOptions::default()
        .connect(Duration::from_secs(5))
        .stall(Duration::from_millis(stall_ms))
}

fn patient() -> SocketOptions {
    options(20_000)
}

/// A connected pair of each family, with small buffers so that messages do not fit.
fn pairs(options: SocketOptions) -> Vec<(SocketStream, SocketStream)> {
    let (a, b) = UnixStream::pair().unwrap();
    let unix: (Socket, Socket) = (OwnedFd::from(a).into(), OwnedFd::from(b).into());
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(1).unwrap();
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.connect(&listener.local_addr().unwrap()).unwrap();
    let tcp = (client, listener.accept().unwrap().0);
    [unix, tcp]
        .into_iter()
        .map(|(a, b)| {
            a.set_send_buffer_size(32768).unwrap();
            b.set_recv_buffer_size(32768).unwrap();
            (
                SocketStream::new(a, options.stall).unwrap(),
                SocketStream::new(b, options.stall).unwrap(),
            )
        })
        .collect()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

fn block(pages: usize) -> RamBlock {
    RamBlock::anonymous("pc.ram", pages as u64 * 4096, 4096).unwrap()
}

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut all = vec![0; block.len() as usize];
    block.region(0, all.len()).unwrap().copy_to(&mut all);
    all
}

/// Sends a header and `pieces` IOVs of odd lengths; receives them into as many regions of other
/// lengths.
fn exchange(mut sender: SocketStream, mut receiver: SocketStream, pieces: usize) {
    let data = pattern(pieces * 1000 + 4096);
    let expected = data.clone();
    let thread = std::thread::spawn(move || {
        let mut iovs = vec![Iov::from(&b"head"[..])];
        let (first, rest) = data.split_at(4096);
        iovs.push(Iov::from(first));
        iovs.extend(rest.chunks(1000).map(Iov::from));
        sender
            .send(&Message::new(&iovs, None), WriteFlags::default())
            .unwrap();
        sender.close().unwrap();
    });
    let mut head = [0; 4];
    assert_eq!(receiver.recv_start(&mut head).unwrap(), Arrival::Message);
    assert_eq!(&head, b"head");
    let target = block(expected.len().div_ceil(4096));
    let mut regions = vec![target.region(0, 96).unwrap()];
    let mut at = 96;
    while at < expected.len() {
        let len = 500.min(expected.len() - at);
        regions.push(target.region(at as u64, len).unwrap());
        at += len;
    }
    receiver.recv_regions(&regions).unwrap();
    assert!(contents(&target)[..expected.len()] == expected);
    assert_eq!(receiver.recv_start(&mut head).unwrap(), Arrival::End);
    thread.join().unwrap();
}

#[test]
fn lists_longer_than_the_kernel_takes_arrive_whole_through_small_buffers() {
    for (sender, receiver) in pairs(patient()) {
        exchange(sender, receiver, 2500);
    }
}

#[test]
fn a_socket_someone_made_non_blocking_works_too() {
    for (sender, receiver) in pairs(patient()) {
        for stream in [&sender, &receiver] {
            let fd = std::os::fd::AsFd::as_fd(stream).as_raw_fd();
            // SAFETY: plain calls on a descriptor that is open.
            unsafe {
                let flags = libc::fcntl(fd, libc::F_GETFL);
                assert_eq!(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK), 0);
            }
        }
        exchange(sender, receiver, 300);
    }
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn interrupted_calls_are_repeated() {
    // SAFETY: the handler only counts; without SA_RESTART it interrupts system calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()),
            0
        );
    }
    for (sender, receiver) in pairs(patient()) {
        let thread = std::thread::spawn(move || exchange(sender, receiver, 5000));
        while !thread.is_finished() {
            // SAFETY: the thread has not been joined.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
            std::thread::sleep(Duration::from_micros(200)); // A pace, not a wait.
        }
        thread.join().unwrap();
    }
    assert!(SIGNALS.load(Ordering::Relaxed) > 10);
}

#[test]
fn a_peer_that_does_not_read_or_write_is_a_stall() {
    for (mut sender, _receiver) in pairs(options(80)) {
        let data = pattern(8 << 20);
        let iovs = [Iov::from(&data[..])];
        let message = Message::new(&iovs, None);
        let error = sender.send(&message, WriteFlags::default()).unwrap_err();
        assert!(matches!(error, ChannelError::Stalled { .. }), "{error}");
    }
    for (_sender, mut receiver) in pairs(options(80)) {
        let error = receiver.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let idle = receiver.recv_start(&mut [0; 4]).unwrap();
        assert!(matches!(idle, Arrival::Idle { .. }));
        let error = receiver.recv(&mut [0; 4]).unwrap_err();
        assert!(matches!(error, ChannelError::Stalled { .. }), "{error}");
        let error = receiver
            .recv_regions(&[block(1).page(0).unwrap()])
            .unwrap_err();
        assert!(matches!(error, ChannelError::Stalled { .. }), "{error}");
    }
}

#[test]
fn an_end_within_a_message_says_how_much_came() {
    for (mut sender, mut receiver) in pairs(patient()) {
        sender.write_all(b"abc").unwrap();
        sender.end_writing().unwrap();
        let error = receiver.recv_start(&mut [0; 10]).unwrap_err();
        assert!(
            matches!(
                error,
                ChannelError::Closed {
                    received: 3,
                    expected: 10
                }
            ),
            "{error}"
        );
        let error = receiver
            .recv_regions(&[block(1).page(0).unwrap()])
            .unwrap_err();
        assert!(
            matches!(
                error,
                ChannelError::Closed {
                    received: 0,
                    expected: 4096
                }
            ),
            "{error}"
        );
        drop(receiver);
        sender.wait_closed().unwrap();
    }
}

#[test]
fn a_peer_that_leaves_bytes_unread_or_aborts_is_no_orderly_end() {
    for (mut sender, receiver) in pairs(patient()) {
        sender.write_all(b"never read").unwrap();
        drop(receiver);
        let error = sender.wait_closed().unwrap_err();
        assert!(
            matches!(&error, ChannelError::Io(e) if e.kind() == ErrorKind::ConnectionReset),
            "{error}"
        );
    }
    // Not even unblocking a reader tells a TCP peer that all is well.
    let (mut sender, mut receiver) = pairs(patient()).pop().unwrap();
    receiver.fail_on_close(true).unwrap();
    receiver.read_unblock_handle().unwrap().unblock();
    drop(receiver);
    assert!(sender.wait_closed().is_err());
    let (mut sender, mut receiver) = pairs(patient()).pop().unwrap();
    receiver.fail_on_close(true).unwrap();
    receiver.fail_on_close(false).unwrap();
    drop(receiver);
    sender.wait_closed().unwrap();
}

#[test]
fn unblocking_wakes_a_blocked_reader_and_writer() {
    for (mut sender, mut receiver) in pairs(patient()) {
        let (wake_sender, wake_receiver) = (
            MainConnection::unblock_handle(&sender).unwrap(),
            receiver.read_unblock_handle().unwrap(),
        );
        let reading = std::thread::spawn(move || {
            loop {
                if let Err(error) = receiver.recv(&mut [0; 100]) {
                    return error;
                }
            }
        });
        wake_receiver.unblock();
        let error = reading.join().unwrap();
        assert!(matches!(error, ChannelError::Stopped), "{error}");
        let data = pattern(8 << 20);
        let writing = std::thread::spawn(move || {
            let iovs = [Iov::from(&data[..])];
            sender.send(&Message::new(&iovs, None), WriteFlags::default())
        });
        wake_sender.unblock();
        let error = writing.join().unwrap().unwrap_err();
        assert!(
            matches!(error, ChannelError::Stopped | ChannelError::Io(_)),
            "{error}"
        );
    }
}

#[test]
fn a_destination_that_goes_away_has_failed_unless_it_says_otherwise() {
    for at_once in [true, false] {
        for (mut sender, mut receiver) in pairs(patient()) {
            receiver.fail_on_close(true).unwrap();
            if at_once {
                receiver.fail();
            }
            drop(receiver);
            assert!(sender.wait_closed().is_err(), "at once: {at_once}");
        }
    }
    for (mut sender, mut receiver) in pairs(patient()) {
        receiver.fail_on_close(true).unwrap();
        receiver.fail_on_close(false).unwrap();
        drop(receiver);
        sender.wait_closed().unwrap();
    }
}

#[test]
fn a_message_that_takes_long_is_no_stall() {
    for (mut sender, mut receiver) in pairs(options(200)) {
        let progress = std::sync::Arc::new(multifd_core::Progress::new(Duration::from_millis(200)));
        RecvChannel::set_progress(&mut receiver, std::sync::Arc::clone(&progress));
        let thread = std::thread::spawn(move || {
            for _ in 0..40 {
                sender.write_all(b"slow").unwrap();
                std::thread::sleep(Duration::from_millis(15)); // A pace, not a wait.
            }
            sender
        });
        receiver.recv(&mut [0; 160]).unwrap();
        assert!(!progress.is_stalled());
        drop(thread.join().unwrap());
    }
}

/// The kernel tells of a reset once. The half that is not told must not take the connection for
/// ended in order: a relay would pass that on, and the source would believe that all is well.
#[test]
fn a_reset_that_one_half_was_told_of_is_no_orderly_end_to_the_other() {
    let (mut near, mut far) = pairs(patient()).pop().unwrap();
    let mut reading = near.second().unwrap();
    far.fail_on_close(true).unwrap();
    drop(far);
    while near.write_all(b"x").is_ok() {}
    let read = reading.read(&mut [0]);
    assert!(read.is_err(), "{read:?}");
    // In order, it is one, also where we have ended our side before.
    for ended in [false, true] {
        let (mut near, far) = pairs(patient()).pop().unwrap();
        if ended {
            near.end_writing().unwrap();
        }
        drop(far);
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
    }
}

/// Both sides end at the same moment, each by one thread, while another reads: that is orderly,
/// however they interleave.
#[test]
fn ending_a_side_while_the_other_ends_is_no_reset() {
    for _ in 0..2000 {
        let (mut near, far) = pairs(patient()).pop().unwrap();
        let mut reading = near.second().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || drop(far));
            scope.spawn(move || near.end_writing());
            let read = reading.read(&mut [0]);
            assert_eq!(read.unwrap(), 0);
        });
    }
}
