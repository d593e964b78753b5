//! How the system schedules the engine's threads.
#![allow(clippy::unwrap_used)]

mod pipe;

use multifd_core::{
    Arrival, ChannelError, Outgoing, Plain, Receiver, ReceiverConfig, RecvChannel, SendChannel, Sender,
    SenderConfig, SyncScope, Transport, Unblock, WriteFlags,
};
use pipe::{Pipe, bytes, guest, write};
use std::sync::{Arc, Mutex};

/// As `sched(7)` numbers them.
const SCHED_OTHER: u32 = 0;
const SCHED_BATCH: u32 = 3;

/// The policy of the thread that asks: field 41 of `/proc/PID/stat`.
fn policy() -> u32 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The name, in brackets, may contain spaces; behind it comes field 3.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(41 - 3).unwrap().parse().unwrap()
}

/// A pipe that notes which policy the thread has that uses it.
#[derive(Clone, Default)]
struct Watched {
    pipe: Pipe,
    sending: Arc<Mutex<Option<u32>>>,
    receiving: Arc<Mutex<Option<u32>>>,
}

impl Transport for Watched {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}

impl SendChannel for Watched {
    fn send(&mut self, message: &Outgoing<'_>, flags: WriteFlags) -> Result<(), ChannelError> {
        if message.pages().is_some() {
            *self.sending.lock().unwrap() = Some(policy());
        }
        self.pipe.send(message, flags)
    }

    fn close(&mut self) -> Result<(), ChannelError> {
        self.pipe.close()
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        SendChannel::unblock_handle(&self.pipe)
    }
}

impl RecvChannel for Watched {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        *self.receiving.lock().unwrap() = Some(policy());
        self.pipe.recv_start(buffer)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), ChannelError> {
        self.pipe.recv(buffer)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        RecvChannel::unblock_handle(&self.pipe)
    }
}

#[test]
fn what_receives_interrupts_nobody_and_what_sends_may() {
    let channel = Watched::default();
    let (source, destination) = (guest("ram", 16), guest("ram", 16));
    write(&source, 3, "something");
    let usual = policy();
    let mut receiver = Receiver::new(destination.clone(), ReceiverConfig::default()).unwrap();
    receiver.attach(Box::new(channel.clone())).unwrap();
    let config = SenderConfig {
        channels: 1,
        ..SenderConfig::default()
    };
    let mut sender = Sender::start(source.clone(), &Plain, &channel, &config).unwrap();
    sender.queue_range(0, 0, 16 * 4096).unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    sender.finish().unwrap();
    receiver.finish().unwrap();
    assert_eq!(bytes(&source), bytes(&destination));
    // A policy that whoever runs this has chosen is left alone.
    let receiving = if usual == SCHED_OTHER { SCHED_BATCH } else { usual };
    assert_eq!(*channel.receiving.lock().unwrap(), Some(receiving));
    assert_eq!(*channel.sending.lock().unwrap(), Some(usual));
    assert_eq!(policy(), usual);
}
