//! One connection of a replay.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::compare::departs;
use super::outcome::{Departure, Difference, Outcome, Said};
use super::parts::{Head, Part, Step, What};
use super::pids::replaced;
use super::turn::Turn;
use super::{Compare, Replay};
use crate::interpose::recording::Side;
use crate::testing::connection::Connection;
use crate::testing::{Request, Response};

pub(super) struct Player<'a> {
    replay: &'a Replay,
    turn: &'a Turn,
    connection: Connection,
    /// The part that is played and the step in it; none before the first, and between two.
    place: Option<(&'a Part, usize)>,
    /// The client's last request.
    request: Option<Head>,
    /// CRIU has answered it.
    answered: bool,
    /// When what was before happened here, and when in the recording.
    before: Instant,
    recorded_before: u64,
    /// The client came after the last session, and gets what the scripted peer has for such a one.
    turns_away: bool,
    outcome: Outcome,
}

/// Why playing ends.
enum End {
    AsRecorded,
    Departed(Departure),
    Problem(String),
}

impl From<String> for End {
    fn from(problem: String) -> Self {
        Self::Problem(problem)
    }
}

impl<'a> Player<'a> {
    pub(super) fn new(replay: &'a Replay, socket: OwnedFd, turn: &'a Turn) -> Self {
        Self {
            replay,
            turn,
            connection: Connection::new(socket),
            place: None,
            request: None,
            answered: false,
            before: Instant::now(),
            recorded_before: 0,
            turns_away: false,
            outcome: Outcome::default(),
        }
    }

    /// `tell` gets the outcome before the client can know.
    pub(super) fn play(mut self, tell: impl FnOnce(&Outcome)) -> Outcome {
        match self.run() {
            Ok(()) | Err(End::AsRecorded) => {}
            Err(End::Departed(departure)) => self.outcome.departure = Some(departure),
            Err(End::Problem(problem)) => self.outcome.problem = Some(problem),
        }
        tell(&self.outcome);
        if self.turns_away {
            // It may have gone.
            let _ = self
                .connection
                .send(&Response::failure(Request::Empty).to_bytes(), 0);
        }
        self.connection.hang_up();
        self.outcome
    }

    fn run(&mut self) -> Result<(), End> {
        if self.compares(Compare::Strict) {
            // Also one in which the engine said nothing.
            match self.take(|_| true)? {
                true => self.count_part(),
                false => return self.turn_away(),
            }
        }
        loop {
            while let Some((part, step)) = self.step() {
                match &step.what {
                    What::Criu { bytes, descriptors } => {
                        self.say(part, step, bytes, *descriptors)?;
                    }
                    What::Ended(by) if self.hangs_up(part, *by) => return Ok(()),
                    What::Ended(_) | What::Engine(_) => break,
                }
            }
            match self.read()? {
                Some(message) => self.heard(&message)?,
                None => return self.client_has_hung_up(),
            }
        }
    }

    // --- from CRIU ---

    fn say(
        &mut self,
        part: &'a Part,
        step: &Step,
        bytes: &[u8],
        descriptors: usize,
    ) -> Result<(), End> {
        if bytes.is_empty() {
            return Err(End::Problem(format!(
                "session {}, line {}: the mask has left this message of CRIU out",
                part.session,
                step.entry + 2
            )));
        }
        let recorded = Duration::from_micros(step.at.saturating_sub(self.recorded_before));
        let due = self.replay.settings.speed.scaled(recorded);
        let left = due.saturating_sub(self.before.elapsed());
        if !left.is_zero() {
            self.connection.linger(left)?;
        }
        let message = replaced(bytes, self.replay.settings.stand_in);
        let listens = self.connection.send(&message, descriptors)?;
        self.happened(step.at);
        self.advance();
        self.answered = !Head::of(bytes).is(Request::Notify);
        let engine_left = matches!(
            self.step(),
            Some((
                _,
                Step {
                    what: What::Ended(Side::Engine),
                    ..
                }
            ))
        );
        match listens || engine_left {
            true => Ok(()),
            false => Err(departed(part, step, Said::Nothing, Said::HangUp)),
        }
    }

    /// Whether CRIU hangs up at the end of a part, rather than to wait for the client to do so.
    fn hangs_up(&self, part: &Part, by: Side) -> bool {
        let keeps_open = self
            .request
            // CRIU waits for further ones.
            .is_some_and(|request| request.keep_open || request.is(Request::PreDump));
        // Both sides do so at once then, and which of them was seen first means nothing.
        let is_over = self.answered && !keeps_open;
        let goes_on = self.compares(Compare::Sequence) && part.only_probes && keeps_open;
        is_over || (by == Side::Criu && !goes_on)
    }

    // --- from the client ---

    fn read(&mut self) -> Result<Option<Vec<u8>>, End> {
        let patience = self.replay.settings.patience;
        if !self.connection.wait_readable(patience)? {
            return Err(match self.step() {
                Some((part, step)) => departed(part, step, expected(step), Said::Nothing),
                None => End::Problem(format!("the client said nothing within {patience:?}")),
            });
        }
        let message = self.connection.receive()?.map(|(bytes, _)| bytes);
        self.before = Instant::now();
        Ok(message)
    }

    fn client_has_hung_up(&mut self) -> Result<(), End> {
        let Some((part, step)) = self.step() else {
            return Ok(());
        };
        let may = match &step.what {
            What::Ended(_) => true,
            // It has asked what it wanted to know.
            _ => self.compares(Compare::Sequence) && part.only_probes,
        };
        match may {
            true => Ok(()),
            false => Err(departed(part, step, expected(step), Said::HangUp)),
        }
    }

    fn heard(&mut self, message: &[u8]) -> Result<(), End> {
        let head = Head::of(message);
        if !head.is(Request::Notify) {
            self.request = Some(head);
            self.answered = false;
        }
        loop {
            let Some((part, step)) = self.step() else {
                if head.is(Request::Version) && self.compares(Compare::Sequence) {
                    if self.take(|part| begins_with_version(part, head.keep_open))? {
                        continue;
                    }
                    if self.answer_own_version()? {
                        return match head.keep_open {
                            true => Ok(()),
                            false => Err(End::AsRecorded),
                        };
                    }
                }
                if !self.take(|_| true)? {
                    return self.send_away(message);
                }
                continue;
            };
            let What::Engine(recorded) = &step.what else {
                // At the end of a part; the next one may be on a connection of its own.
                if self.compares(Compare::Sequence) && part.only_probes {
                    self.place = None;
                    continue;
                }
                return Err(departed(part, step, Said::HangUp, Said::message(message)));
            };
            let masked = self.replay.recording.header.masked;
            let compare = self.replay.settings.compare;
            let Some(differences) = departs(recorded, message, compare, masked) else {
                self.count_part();
                self.happened(step.at);
                self.advance();
                return Ok(());
            };
            let recorded = Head::of(recorded);
            if compare == Compare::Sequence && !recorded.is(Request::Notify) {
                if head.is(Request::Version) && self.answer_own_version()? {
                    return Ok(());
                }
                if recorded.is_probe() {
                    self.skip_probe();
                    continue;
                }
            }
            return Err(departed_by(
                part,
                step,
                expected(step),
                Said::message(message),
                differences,
            ));
        }
    }

    // --- what the recording does not have there ---

    /// Answers VERSION as it was answered elsewhere, nearest first; false when it nowhere was.
    fn answer_own_version(&mut self) -> Result<bool, End> {
        let here = self.place.and_then(|(part, _)| part.version());
        let anywhere = || self.replay.parts.iter().find_map(Part::version);
        let Some(answer) = here.or_else(anywhere) else {
            return Ok(false);
        };
        // A client that has gone is noticed when it is read from.
        self.connection.send(answer, 0)?;
        self.before = Instant::now();
        self.answered = true;
        Ok(true)
    }

    /// Goes on to what the engine did after the probe that it sent here.
    fn skip_probe(&mut self) {
        self.advance();
        while let Some((_, step)) = self.step()
            && let What::Criu { .. } = step.what
        {
            self.recorded_before = step.at;
            self.advance();
        }
    }

    fn turn_away(&mut self) -> Result<(), End> {
        match self.read()? {
            Some(message) => self.send_away(&message),
            None => Ok(()),
        }
    }

    fn send_away(&mut self, message: &[u8]) -> Result<(), End> {
        self.turns_away = true;
        Err(End::Departed(Departure {
            session: 0,
            entry: self.replay.recording.entries.len(),
            expected: Said::Nothing,
            got: Said::message(message),
            differences: Vec::new(),
        }))
    }

    // --- the place ---

    fn step(&self) -> Option<(&'a Part, &'a Step)> {
        let (part, index) = self.place?;
        Some((part, part.steps.get(index)?))
    }

    fn advance(&mut self) {
        if let Some((_, index)) = &mut self.place {
            *index += 1;
        }
    }

    fn take(&mut self, wanted: impl FnOnce(&Part) -> bool) -> Result<bool, End> {
        let parts = &self.replay.parts;
        let taken = self
            .turn
            .take(parts, wanted)
            .map_err(|error| format!("the count of sessions cannot be kept: {error}"))?;
        if let Some(part) = taken.and_then(|index| parts.get(index)) {
            self.place = Some((part, 0));
            self.recorded_before = 0;
        }
        Ok(taken.is_some())
    }

    /// Takes note that this part is played, not only skipped.
    fn count_part(&mut self) {
        if let Some((part, _)) = self.place
            && self.outcome.sessions.last() != Some(&part.session)
        {
            self.outcome.sessions.push(part.session);
        }
    }

    fn happened(&mut self, at: u64) {
        self.before = Instant::now();
        self.recorded_before = at;
    }

    fn compares(&self, how: Compare) -> bool {
        self.replay.settings.compare == how
    }
}

/// Whether a VERSION is the first message of this part. One that is not to keep the connection open is a connection of its
/// own, and no part that goes on.
fn begins_with_version(part: &Part, keep_open: bool) -> bool {
    part.first().is_some_and(|first| first.is(Request::Version)) && (keep_open || part.only_probes)
}

fn expected(step: &Step) -> Said {
    match &step.what {
        What::Engine(bytes) => Said::message(bytes),
        What::Criu { .. } => Said::Nothing,
        What::Ended(_) => Said::HangUp,
    }
}

fn departed(part: &Part, step: &Step, expected: Said, got: Said) -> End {
    departed_by(part, step, expected, got, Vec::new())
}

fn departed_by(
    part: &Part,
    step: &Step,
    expected: Said,
    got: Said,
    differences: Vec<Difference>,
) -> End {
    End::Departed(Departure {
        session: part.session,
        entry: step.entry,
        expected,
        got,
        differences,
    })
}
