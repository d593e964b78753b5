//! Connections that have not said yet what they are: their first four bytes tell. No more of them
//! wait than a migration can have; who says nothing goes first, and of those who do, the ones from
//! where most come.

use crate::SocketStream;
use crate::door::{Arrived, Door, Look, MAX_WAITING, first_of_the_crowd, greeting};
use crate::sys;
use multifd_core::ChannelError;
use multifd_core::packet::Greeting;
use socket2::{SockAddr, Socket};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Lobby {
    undecided: VecDeque<Visitor>,
    decided: VecDeque<Arrived>,
}

#[derive(Debug)]
struct Visitor {
    socket: Socket,
    peer: SockAddr,
    head: [u8; 4],
    /// Bytes of its head that have come.
    said: usize,
}

/// How long to wait for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For one to come, until then; as long as it takes, without a deadline.
    ForOne(Option<Instant>),
    /// For those that are there to say what they are, until then.
    ForThose(Instant),
}

/// What a connection has said of itself.
enum Said {
    All(Greeting),
    /// Not all four bytes are there.
    Part,
    Nonsense(String),
}

impl Visitor {
    /// Reads what there is of the head.
    fn listen(&mut self) -> Said {
        while let Some(room) = self
            .head
            .get_mut(self.said..)
            .filter(|room| !room.is_empty())
        {
            match sys::recv(&self.socket, room, libc::MSG_DONTWAIT) {
                Ok(0) => return Said::Nonsense("it ended before it had said what it is".into()),
                Ok(n) => self.said += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Said::Part,
                Err(e) => return Said::Nonsense(e.to_string()),
            }
        }
        match greeting(self.head) {
            Ok(kind) => Said::All(kind),
            Err(why) => Said::Nonsense(why),
        }
    }
}

impl Lobby {
    /// Takes a connection in.
    pub(crate) fn admit(
        &mut self,
        door: &Door,
        socket: Socket,
        peer: SockAddr,
    ) -> Result<(), ChannelError> {
        self.undecided.push_back(Visitor {
            socket,
            peer,
            head: [0; 4],
            said: 0,
        });
        if self.undecided.len() <= MAX_WAITING {
            return Ok(());
        }
        self.listen(door)?;
        if self.undecided.len() > MAX_WAITING {
            self.make_room(door);
        }
        Ok(())
    }

    /// Turns one of those away who have said nothing; `false` if there is nobody.
    fn make_room(&mut self, door: &Door) -> bool {
        let waiting = self
            .undecided
            .iter()
            .map(|visitor| &visitor.peer)
            .enumerate();
        let Some(gone) = first_of_the_crowd(waiting).and_then(|at| self.undecided.remove(at))
        else {
            return false;
        };
        door.refuse(&gone.peer, "it said nothing while others came");
        true
    }

    /// The next connection that has said what it is.
    pub(crate) fn next(
        &mut self,
        door: &Door,
        patience: Patience,
    ) -> Result<Option<Arrived>, ChannelError> {
        loop {
            // Not for ever: somebody may connect faster than we look.
            for _ in 0..MAX_WAITING {
                match door.look()? {
                    Look::Came(socket, peer) => self.admit(door, socket, peer)?,
                    Look::NoRoom(error) if !self.make_room(door) => return Err(error),
                    Look::NoRoom(_) | Look::Refused => {}
                    Look::Nobody => break,
                }
            }
            self.listen(door)?;
            if let Some(arrived) = self.decided.pop_front() {
                return Ok(Some(arrived));
            }
            let until = match patience {
                Patience::ForOne(until) => until,
                Patience::ForThose(_) if self.undecided.is_empty() => return Ok(None),
                Patience::ForThose(until) => Some(until),
            };
            if until.is_some_and(|until| Instant::now() >= until) {
                if let Patience::ForThose(_) = patience {
                    for silent in self.undecided.drain(..) {
                        door.refuse(&silent.peer, "it said nothing");
                    }
                }
                return Ok(None);
            }
            door.wait(
                self.undecided.iter().map(|visitor| visitor.socket.as_fd()),
                until,
            )?;
        }
    }

    /// Hears what those who wait have to say.
    fn listen(&mut self, door: &Door) -> Result<(), ChannelError> {
        for _ in 0..self.undecided.len() {
            let Some(mut visitor) = self.undecided.pop_front() else {
                break;
            };
            match visitor.listen() {
                Said::Part => self.undecided.push_back(visitor),
                Said::Nonsense(why) => door.refuse(&visitor.peer, why),
                Said::All(_) if self.decided.len() >= MAX_WAITING => {
                    door.refuse(&visitor.peer, too_many());
                }
                Said::All(kind) => {
                    let stream = SocketStream::accepted(visitor.socket, door.options.stall, None)?;
                    self.decided
                        .push_back((stream.with_head(&visitor.head), kind));
                }
            }
        }
        Ok(())
    }
}

/// Why a connection that is one of a migration's is turned away all the same.
pub(crate) fn too_many() -> String {
    format!("{MAX_WAITING} connections wait already; a migration has at most 255 channels")
}
