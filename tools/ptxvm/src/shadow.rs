//! What results cannot show: who accessed shared memory when, and what orders it.
//!
//! Agents are the warps, each warp's `cp.async`, and the transfers into each mbarrier. Every agent has a clock, every warp
//! knows of every agent up to some time. A release (arriving at an mbarrier, a barrier) hands on what the releasing warp
//! knows, and nothing of its neighbours; an mbarrier hands it on when its phase completes. For each word of shared memory
//! the last write (agent, time, through which proxy) and the last read of each warp are kept, and how many asynchronous
//! reads are under way: those end with the wait of the warp that issued them. Lanes of one warp are taken as ordered.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::finding::{Fault, Kind, Step};

/// Times an agent counts.
type Clock = Vec<u32>;

const NOBODY: u16 = u16::MAX;

/// How a word was written last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    /// Through the asynchronous proxy.
    Async,
    /// By a store or by `cp.async`.
    Generic,
    /// By an atomic.
    Atomic,
}

/// The last write of a word: who, how and when in one number, so that neighbours are compared at once.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Last(u64);

impl Last {
    const fn new(writer: u16, how: Write, time: u32) -> Last {
        Last((writer as u64) << 48 | (how as u64) << 32 | time as u64)
    }

    fn writer(self) -> u16 {
        (self.0 >> 48) as u16
    }

    fn how(self) -> Write {
        match self.0 >> 32 & 3 {
            0 => Write::Async,
            1 => Write::Generic,
            _ => Write::Atomic,
        }
    }

    fn time(self) -> u32 {
        self.0 as u32
    }
}

const NEVER: Last = Last::new(NOBODY, Write::Async, 0);

/// Whether all words were written last by one write.
#[inline(always)]
fn one_write(words: &[Last]) -> bool {
    words.first().is_some_and(|first| words.iter().fold(0, |d, w| d | w.0 ^ first.0) == 0)
}

/// Words that are forgotten together when a shadow is used again.
const PAGE: usize = 256;

/// Words of a line, of which the last read is known too: mostly no word of it need be looked at.
const LINE: usize = 32;

/// Lines of a span of words.
#[inline(always)]
fn lines(span: &Range<usize>) -> Range<usize> {
    span.start / LINE..span.end.div_ceil(LINE)
}

/// The shadow of one block.
pub(crate) struct Shadow {
    warps: usize,
    /// What each warp knows of each agent.
    known: Vec<Clock>,
    /// By word.
    last: Vec<Last>,
    /// Time of the last read, by warp and word.
    read: Vec<Vec<u32>>,
    /// The same by warp and line.
    read_lines: Vec<Vec<u32>>,
    /// Asynchronous reads under way, by word.
    held: Vec<u16>,
    /// Pages of words that were written: nothing else is remembered.
    dirty: Vec<bool>,
    bars: BTreeMap<u32, Barrier>,
    /// Arrivals of this phase at each `bar`.
    blocks: [Clock; 17],
    /// Times of proxy fences of each warp, ascending.
    fences: Vec<Vec<u32>>,
    /// Own times of agents that are no warps, from `warps` on.
    agents: Vec<u32>,
    /// For each warp's copies: their time, and the warp's time when it had waited for them.
    waited: Vec<Vec<(u32, u32)>>,
}

struct Barrier {
    /// Clocks of this phase's arrivals, and of all completed phases.
    coming: Clock,
    done: Clock,
    by: usize,
    at: u32,
    fenced: bool,
    agent: Option<usize>,
}

fn join(a: &mut Clock, b: &[u32]) {
    if a.len() < b.len() {
        a.resize(b.len(), 0);
    }
    for (a, &b) in a.iter_mut().zip(b) {
        *a = (*a).max(b);
    }
}

fn of(c: &[u32], agent: usize) -> u32 {
    c.get(agent).copied().unwrap_or(0)
}

fn at<T>(kind: Kind, word: usize, message: String) -> Step<T> {
    Err(Box::new(Fault { kind, lane: None, address: Some(word as u64 * 4), message }))
}

impl Shadow {
    /// The shadow of a block of so many warps and words, in the memory of an earlier one.
    pub fn new(warps: usize, words: usize, before: Option<Shadow>) -> Shadow {
        let (mut last, mut read, mut read_lines, mut held, mut dirty) = match before {
            Some(b) => (b.last, b.read, b.read_lines, b.held, b.dirty),
            None => Default::default(),
        };
        for (n, d) in dirty.iter_mut().enumerate().filter(|(_, d)| **d) {
            let page = n * PAGE..(n + 1) * PAGE;
            last[page.clone()].fill(NEVER);
            held[page.clone()].fill(0);
            read.iter_mut().for_each(|r: &mut Vec<u32>| r[page.clone()].fill(0));
            read_lines.iter_mut().for_each(|r: &mut Vec<u32>| r[lines(&page)].fill(0));
            *d = false;
        }
        if last.len() < words || read.len() < warps {
            let words = words.next_multiple_of(PAGE).max(last.len());
            last.resize(words, NEVER);
            held.resize(words, 0);
            dirty.resize(words / PAGE, false);
            read.resize(warps.max(read.len()), Vec::new());
            read.iter_mut().for_each(|r| r.resize(words, 0));
            read_lines.resize(read.len(), Vec::new());
            read_lines.iter_mut().for_each(|r| r.resize(words / LINE, 0));
        }
        let mut known = vec![vec![0; 2 * warps]; warps];
        for (w, k) in known.iter_mut().enumerate() {
            k[w] = 1;
        }
        Shadow {
            warps,
            known,
            last,
            read,
            read_lines,
            held,
            dirty,
            bars: BTreeMap::new(),
            blocks: Default::default(),
            fences: vec![Vec::new(); warps],
            agents: vec![0; warps],
            waited: vec![Vec::new(); warps],
        }
    }

    // ---- order ----

    fn now(&self, w: usize) -> u32 {
        self.known[w][w]
    }

    fn tick(&mut self, w: usize) {
        self.known[w][w] += 1;
    }

    /// `fence.proxy.async`.
    pub fn fence(&mut self, w: usize) {
        let now = self.now(w);
        self.fences[w].push(now);
        self.tick(w);
    }

    /// A warp arrives at barrier `id` of a block: what it knows is there for those who wait.
    pub fn bar_arrive(&mut self, w: usize, id: usize) {
        join(&mut self.blocks[id], &self.known[w]);
        self.tick(w);
    }

    /// The barrier completes for the warps that waited.
    pub fn bar_done(&mut self, id: usize, ws: &[usize]) {
        let all = std::mem::take(&mut self.blocks[id]);
        ws.iter().for_each(|&w| join(&mut self.known[w], &all));
    }

    pub fn init(&mut self, w: usize, bar: u32) {
        let at = self.now(w);
        self.bars
            .insert(bar, Barrier { coming: Clock::new(), done: Clock::new(), by: w, at, fenced: false, agent: None });
    }

    /// `fence.mbarrier_init`.
    pub fn init_fence(&mut self, w: usize) {
        self.bars.values_mut().filter(|b| b.by == w).for_each(|b| b.fenced = true);
    }

    /// An mbarrier is used by a warp, which must know that it was initialised.
    fn seen(&mut self, w: usize, bar: u32, proxy: bool) -> Step<&mut Barrier> {
        let known = &self.known[w];
        let word = bar as usize / 4;
        let Some(b) = self.bars.get_mut(&bar) else {
            return at(Kind::Mbarrier, word, "an mbarrier that nobody initialised".into());
        };
        if b.by != w && of(known, b.by) < b.at {
            return at(
                Kind::Race,
                word,
                format!("warp {w} uses an mbarrier whose initialisation by warp {} it need not see", b.by),
            );
        }
        if (proxy || b.by != w) && !b.fenced {
            return at(Kind::Proxy, word, "an mbarrier without fence.mbarrier_init after its initialisation".into());
        }
        Ok(b)
    }

    /// An mbarrier is used without handing anything on.
    pub fn known_barrier(&mut self, w: usize, bar: u32) -> Step {
        self.seen(w, bar, false).map(|_| ())
    }

    pub fn arrive(&mut self, w: usize, bar: u32) -> Step {
        self.seen(w, bar, false)?;
        if let Some(b) = self.bars.get_mut(&bar) {
            join(&mut b.coming, &self.known[w]);
        }
        self.tick(w);
        Ok(())
    }

    /// The phase of an mbarrier completes.
    pub fn phase(&mut self, bar: u32) {
        if let Some(b) = self.bars.get_mut(&bar) {
            join(&mut b.done, &b.coming);
            b.coming.clear();
        }
    }

    /// A warp has waited for an mbarrier.
    pub fn passed(&mut self, w: usize, bar: u32) -> Step {
        self.seen(w, bar, false)?;
        if let Some(b) = self.bars.get(&bar) {
            join(&mut self.known[w], &b.done);
        }
        Ok(())
    }

    // ---- accesses ----

    fn agent(&self, a: u16) -> String {
        let a = usize::from(a);
        if a < self.warps {
            format!("by warp {a}")
        } else if a < 2 * self.warps {
            format!("by cp.async of warp {}", a - self.warps)
        } else {
            "by a bulk copy".into()
        }
    }

    #[inline(always)]
    fn after_write(&self, w: usize, g: usize, what: &str, proxy: bool) -> Step {
        let (a, how, time) = (self.last[g].writer(), self.last[g].how(), self.last[g].time());
        if a == NOBODY {
            return at(Kind::Uninitialised, g, format!("{what} of shared memory that nobody wrote"));
        }
        if usize::from(a) != w && time > of(&self.known[w], a.into()) {
            return at(Kind::Race, g, format!("{what} by warp {w}, not ordered after the write {}", self.agent(a)));
        }
        if proxy && how != Write::Async { self.fenced(w, g, what) } else { Ok(()) }
    }

    /// The same for several words: neighbours are mostly of one write, which is looked at once.
    #[inline(always)]
    fn after_writes(&self, w: usize, span: Range<usize>, what: &str, proxy: bool) -> Step {
        if one_write(&self.last[span.clone()]) {
            return self.after_write(w, span.start, what, proxy);
        }
        let mut seen = None;
        for g in span {
            if seen != Some(self.last[g]) {
                self.after_write(w, g, what, proxy)?;
                seen = Some(self.last[g]);
            }
        }
        Ok(())
    }

    /// A generic write that the asynchronous proxy reads: its writer fenced after it, and this warp knows.
    fn fenced(&self, w: usize, g: usize, what: &str) -> Step {
        let (writer, mut time) = (self.last[g].writer(), self.last[g].time());
        let a = usize::from(writer);
        let v = if a < self.warps {
            a
        } else {
            let v = a - self.warps;
            let waits = &self.waited[v];
            time = waits.get(waits.partition_point(|x| x.0 < time)).map_or(u32::MAX, |x| x.1);
            v
        };
        let f = &self.fences[v];
        match f.get(f.partition_point(|&x| x < time)) {
            Some(&f) if v == w || of(&self.known[w], v) >= f => Ok(()),
            _ => at(
                Kind::Proxy,
                g,
                format!("{what} by warp {w} of what was written {} without fence.proxy.async", self.agent(writer)),
            ),
        }
    }

    #[inline(always)]
    fn before_write(&self, w: usize, span: Range<usize>, what: &str) -> Step {
        let mut seen = NEVER;
        let one = one_write(&self.last[span.clone()]);
        for g in span.clone().take(if one { 1 } else { usize::MAX }) {
            let last = self.last[g];
            if last != seen {
                let a = last.writer();
                if a != NOBODY && usize::from(a) != w && last.time() > of(&self.known[w], a.into()) {
                    let whose = self.agent(a);
                    return at(Kind::Race, g, format!("{what} by warp {w}, not ordered after the write {whose}"));
                }
                seen = last;
            }
        }
        self.after_reads(w, span, what)
    }

    #[inline(always)]
    fn after_reads(&self, w: usize, span: Range<usize>, what: &str) -> Step {
        // without an early end the compiler makes one comparison of many words
        if self.held[span.clone()].iter().fold(0, |m, &h| m | h) > 0 {
            let n = self.held[span.clone()].iter().position(|&h| h > 0).unwrap_or(0);
            let message = format!("{what} by warp {w} over what an asynchronous read still uses");
            return at(Kind::Race, span.start + n, message);
        }
        let known = &self.known[w];
        for (v, read) in self.read_lines[..self.warps].iter().enumerate() {
            if v == w || read[lines(&span)].iter().fold(0, |m, &r| m.max(r)) <= known[v] {
                continue;
            }
            if let Some(n) = self.read[v][span.clone()].iter().position(|&r| r > known[v]) {
                let message = format!("{what} by warp {w}, not ordered after a read by warp {v}");
                return at(Kind::Race, span.start + n, message);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn wrote(&mut self, span: Range<usize>, agent: usize, time: u32, how: Write) {
        if !span.is_empty() {
            self.dirty[span.start / PAGE..=(span.end - 1) / PAGE].fill(true);
        }
        self.last[span].fill(Last::new(agent as u16, how, time));
    }

    #[inline(always)]
    fn has_read(&mut self, w: usize, span: Range<usize>, now: u32) {
        self.read_lines[w][lines(&span)].fill(now);
        self.read[w][span].fill(now);
    }

    /// Words of an access of bytes.
    #[inline(always)]
    fn span(a: usize, len: usize) -> Range<usize> {
        a / 4..(a + len).div_ceil(4)
    }

    #[inline(always)]
    pub fn read(&mut self, w: usize, a: usize, len: usize) -> Step {
        let now = self.now(w);
        let span = Self::span(a, len);
        self.after_writes(w, span.clone(), "a read", false)?;
        self.has_read(w, span, now);
        Ok(())
    }

    #[inline(always)]
    pub fn write(&mut self, w: usize, a: usize, len: usize) -> Step {
        let now = self.now(w);
        let span = Self::span(a, len);
        self.before_write(w, span.clone(), "a write")?;
        self.wrote(span, w, now, Write::Generic);
        Ok(())
    }

    /// An atomic: atomics need no order among each other, but with everything else.
    pub fn atomic(&mut self, w: usize, a: usize, len: usize) -> Step {
        let now = self.now(w);
        for g in Self::span(a, len) {
            if self.last[g].how() != Write::Atomic {
                self.after_write(w, g, "an atomic", false)?;
            }
            self.after_reads(w, g..g + 1, "an atomic")?;
            self.wrote(g..g + 1, w, now, Write::Atomic);
        }
        Ok(())
    }

    /// A bulk load is issued: the agent that will write, and the time of its write.
    pub fn bulk_load(&mut self, w: usize, a: usize, len: usize, bar: u32) -> Step<(usize, u32)> {
        self.seen(w, bar, true)?;
        self.before_write(w, Self::span(a, len), "a bulk copy")?;
        let span = Self::span(a, len);
        let one = one_write(&self.last[span.clone()]);
        for g in span.take(if one { 1 } else { usize::MAX }) {
            if self.last[g].how() != Write::Async && usize::from(self.last[g].writer()) == w {
                self.after_write(w, g, "a bulk copy over a write", true)?;
            }
        }
        let next = self.warps + self.agents.len();
        let agent = match self.bars.get_mut(&bar) {
            Some(b) => *b.agent.get_or_insert(next),
            None => next,
        };
        if agent == next {
            self.agents.push(0);
        }
        self.agents[agent - self.warps] += 1;
        let time = self.agents[agent - self.warps];
        self.wrote(Self::span(a, len), agent, time, Write::Async);
        Ok((agent, time))
    }

    /// It has arrived.
    pub fn bulk_loaded(&mut self, bar: u32, (agent, time): (usize, u32)) {
        if let Some(b) = self.bars.get_mut(&bar) {
            if b.coming.len() <= agent {
                b.coming.resize(agent + 1, 0);
            }
            b.coming[agent] = b.coming[agent].max(time);
        }
    }

    /// An asynchronous read of spans of words begins: by a bulk store of one warp or by `wgmma` of four.
    pub fn hold(&mut self, ws: Range<usize>, spans: impl Iterator<Item = Range<usize>>, what: &str) -> Step {
        let mut seen = None;
        for span in spans {
            let one = one_write(&self.last[span.clone()]);
            for g in span.clone().take(if one { 1 } else { usize::MAX }) {
                if seen != Some(self.last[g]) {
                    ws.clone().try_for_each(|w| self.after_write(w, g, what, true))?;
                    seen = Some(self.last[g]);
                }
            }
            self.held[span].iter_mut().for_each(|h| *h = h.saturating_add(1));
        }
        Ok(())
    }

    /// That read ends with the wait of its warps.
    pub fn let_go(&mut self, ws: Range<usize>, spans: impl Iterator<Item = Range<usize>> + Clone) {
        for span in spans.clone() {
            self.held[span].iter_mut().for_each(|h| *h = h.saturating_sub(1));
        }
        for w in ws {
            let now = self.now(w);
            spans.clone().for_each(|span| self.has_read(w, span, now));
        }
    }

    /// `cp.async` is issued: the time of its write.
    pub fn copy(&mut self, w: usize, a: usize, len: usize) -> Step<u32> {
        self.before_write(w, Self::span(a, len), "cp.async")?;
        self.copied_to(w, a, len);
        Ok(self.copy_time(w))
    }

    /// Whether it may be.
    pub fn may_copy(&self, w: usize, a: usize, len: usize) -> bool {
        self.before_write(w, Self::span(a, len), "cp.async").is_ok()
    }

    /// It was, to these bytes.
    pub fn copied_to(&mut self, w: usize, a: usize, len: usize) {
        self.wrote(Self::span(a, len), self.warps + w, self.copy_time(w), Write::Generic);
    }

    /// The time of the copies of the instruction that runs.
    pub fn copy_time(&self, w: usize) -> u32 {
        self.agents[w] + 1
    }

    /// The copies of one instruction have been issued.
    pub fn copied(&mut self, w: usize) {
        self.agents[w] += 1;
    }

    /// A warp's copies up to a time have arrived where an mbarrier counts them.
    pub fn copies_counted(&mut self, w: usize, time: u32, bar: u32) -> Step {
        self.seen(w, bar, false)?;
        self.bulk_loaded(bar, (self.warps + w, time));
        Ok(())
    }

    /// The warp has waited for its copies up to a time.
    pub fn copies_done(&mut self, w: usize, time: u32) {
        let k = self.warps + w;
        self.known[w][k] = self.known[w][k].max(time);
        let now = self.now(w);
        self.waited[w].push((time, now));
    }

    /// The first word that an asynchronous read still uses.
    pub fn still_held(&self) -> Option<usize> {
        let dirty = self.dirty.iter().enumerate().filter(|(_, d)| **d);
        dirty.flat_map(|(n, _)| n * PAGE..(n + 1) * PAGE).find(|&g| self.held[g] > 0)
    }
}
