use std::sync::Arc;

use super::Module;
use crate::device::philox::{Key, Purpose};
use crate::device::{Device, Tensor};
use crate::ops::affine::{self, Affine};
use crate::ops::linear::Lora;
use crate::ops::{copy, noise};

/// One set of trainable numbers on a frozen base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The trained policy.
    Theta,
    /// The lagged policy.
    Old,
    /// The average that is evaluated and published.
    Average,
    /// A reference that is an adapter of its own.
    Reference,
    /// A second lagged policy, which samples.
    Sampling,
}

impl Slot {
    /// Its name in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Theta => "theta",
            Self::Old => "old",
            Self::Average => "average",
            Self::Reference => "reference",
            Self::Sampling => "sampling",
        }
    }
}

/// Where the factors of one module lie in a flat buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where `A` `[rank, in]` begins.
    pub a: usize,
    /// Where `B` `[out, rank]` begins.
    pub b: usize,
    rank: usize,
    inputs: usize,
    outputs: usize,
}

/// Which modules have factors, and where these lie in a flat buffer: one after another in module order, `A` before `B`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    places: Vec<Option<Place>>,
    len: usize,
}

impl Layout {
    /// A layout with a factor of the given rank for each module that has one.
    pub fn new(modules: &[Module], ranks: impl IntoIterator<Item = Option<usize>>) -> Self {
        let mut len = 0;
        let place = |(m, rank): (&Module, Option<usize>)| {
            let rank = rank?;
            let (a, b) = (len, len + rank * m.inputs);
            len = b + m.outputs * rank;
            Some(Place { a, b, rank, inputs: m.inputs, outputs: m.outputs })
        };
        let places = modules.iter().zip(ranks).map(place).collect();
        Self { places, len }
    }

    /// Factors of one rank for the `selected` modules.
    pub fn selected(modules: &[Module], selected: &[bool], rank: usize) -> Self {
        Self::new(modules, selected.iter().map(|s| s.then_some(rank)))
    }

    /// Numbers in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no module has factors.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the factors of module `index` lie, if it has any.
    pub fn place(&self, index: usize) -> Option<Place> {
        self.places[index]
    }

    /// Every factor's name as the parameter is called in diffusers, its first element and its shape; in their order.
    pub fn parameters(&self, modules: &[Module]) -> Vec<(String, usize, [usize; 2])> {
        let named = modules.iter().zip(&self.places).filter_map(|(m, p)| Some((&m.name, (*p)?)));
        named
            .flat_map(|(name, p)| {
                [("A", p.a, [p.rank, p.inputs]), ("B", p.b, [p.outputs, p.rank])]
                    .map(|(f, at, shape)| (format!("{name}.lora_{f}.weight"), at, shape))
            })
            .collect()
    }

    /// The parameter that element `at` belongs to, and which of its elements it is.
    pub fn name_of(&self, modules: &[Module], at: usize) -> (String, usize) {
        let parameters = self.parameters(modules);
        let (name, first, _) = parameters.into_iter().rfind(|(_, first, _)| *first <= at).expect("inside the layout");
        (name, at - first)
    }
}

/// The factors of one module, as views.
#[derive(Clone)]
pub struct Factor {
    /// `A`, `[rank, in]`.
    pub a: Tensor,
    /// `B`, `[out, rank]`.
    pub b: Tensor,
}

/// Flat sets of trainable numbers on one frozen base.
#[derive(Clone)]
pub struct AdapterBank {
    layout: Arc<Layout>,
    scale: f32,
    slots: Vec<(Slot, Tensor)>,
}

impl AdapterBank {
    /// A bank without a slot; `scale` is `alpha / rank`.
    pub fn new(layout: Arc<Layout>, scale: f32) -> Self {
        Self { layout, scale, slots: Vec::new() }
    }

    /// What a run starts from: `A` normal with standard deviation `1/rank`, `B` zero (PEFT's
    /// `init_lora_weights="gaussian"`), so that it changes nothing yet. A module's factors depend on the seed and its
    /// name alone.
    pub fn initial(layout: &Layout, modules: &[Module], seed: u64, device: &Device) -> Tensor {
        let mut flat = Tensor::zeros(device, &[layout.len]);
        for (m, place) in modules.iter().zip(&layout.places) {
            let Some(p) = place else { continue };
            let key = Key { prompt: crc32fast::hash(m.name.as_bytes()), ..Key::new(seed, Purpose::LoraInit) };
            let normal = noise::normal(device, &[key], &[1, p.rank * p.inputs]);
            let scaled = affine::forward(&normal, Affine { scale: 1.0 / p.rank as f32, ..Affine::default() });
            copy::flat_into(&mut flat, p.a, &scaled);
        }
        flat
    }

    /// Puts `numbers` `[len]` into `slot`, in place of what was there.
    pub fn set(&mut self, slot: Slot, numbers: Tensor) {
        assert_eq!(numbers.shape(), [self.layout.len], "{slot:?}");
        match self.slots.iter_mut().find(|(s, _)| *s == slot) {
            Some((_, there)) => *there = numbers,
            None => self.slots.push((slot, numbers)),
        }
    }

    /// Puts a copy of `from` into `slot`.
    pub fn copy(&mut self, slot: Slot, from: Slot) {
        let numbers = copy::owned(self.numbers(from));
        self.set(slot, numbers);
    }

    /// `s = alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Which modules have factors, and where.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All slots and their numbers.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &Tensor)> {
        self.slots.iter().map(|(s, t)| (*s, t))
    }

    /// Whether there is such a slot.
    pub fn has(&self, slot: Slot) -> bool {
        self.slots.iter().any(|(s, _)| *s == slot)
    }

    /// The numbers of `slot`, which is there.
    pub fn numbers(&self, slot: Slot) -> &Tensor {
        let found = self.slots.iter().find(|(s, _)| *s == slot);
        &found.unwrap_or_else(|| panic!("the bank has no {slot:?}")).1
    }

    /// The numbers of `slot` for writing.
    pub fn numbers_mut(&mut self, slot: Slot) -> &mut Tensor {
        let found = self.slots.iter_mut().find(|(s, _)| *s == slot);
        &mut found.unwrap_or_else(|| panic!("the bank has no {slot:?}")).1
    }

    /// The numbers of `follower` for writing, and those of another slot.
    pub fn pair_mut(&mut self, follower: Slot, leader: Slot) -> (&mut Tensor, &Tensor) {
        let at = |slot| self.slots.iter().position(|(s, _)| *s == slot).unwrap_or_else(|| panic!("no {slot:?}"));
        let both = [at(follower), at(leader)];
        let [a, b] = self.slots.get_disjoint_mut(both).expect("two different slots");
        (&mut a.1, &b.1)
    }

    /// The factors of module `index` in `slot`, if it has any.
    pub fn factor(&self, slot: Slot, index: usize) -> Option<Factor> {
        let (p, flat) = (self.layout.places[index]?, self.numbers(slot));
        Some(Factor { a: flat.view(p.a, &[p.rank, p.inputs]), b: flat.view(p.b, &[p.outputs, p.rank]) })
    }

    /// Every factor of `slot` by its name in diffusers.
    pub fn named(&self, slot: Slot, modules: &[Module]) -> Vec<(String, Tensor)> {
        named(self.numbers(slot), &self.layout, modules)
    }
}

/// Every parameter of a flat buffer by its name in diffusers.
pub fn named(flat: &Tensor, layout: &Layout, modules: &[Module]) -> Vec<(String, Tensor)> {
    let parameters = layout.parameters(modules).into_iter();
    parameters.map(|(name, at, shape)| (name, flat.view(at, &shape))).collect()
}

/// Which slot each row of a batch goes through, as runs of equal rows; no slot is the base alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    runs: Vec<(Option<Slot>, usize)>,
    /// The leading rows that a backward is for.
    trained: usize,
}

impl Rows {
    /// `count` rows through one slot.
    pub fn all(slot: Option<Slot>, count: usize) -> Self {
        Self::runs([(slot, count)])
    }

    /// Runs one after another; those of no rows are left out. A backward is for the leading rows that go through the trained
    /// policy.
    pub fn runs(runs: impl IntoIterator<Item = (Option<Slot>, usize)>) -> Self {
        let runs: Vec<_> = runs.into_iter().filter(|(_, n)| *n > 0).collect();
        let trained = runs.iter().take_while(|(s, _)| *s == Some(Slot::Theta)).map(|(_, n)| n).sum();
        Self { runs, trained }
    }

    /// The same, with a backward for at most the first `most`.
    pub fn training(self, most: usize) -> Self {
        Self { trained: self.trained.min(most), ..self }
    }

    /// Some of the rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let within = |run: std::ops::Range<usize>| run.end.min(rows.end).saturating_sub(run.start.max(rows.start));
        let trained = within(0..self.trained);
        Self { trained, ..Self::runs(self.ranges().map(|(slot, run)| (slot, within(run)))) }
    }

    /// Rows in all.
    pub fn count(&self) -> usize {
        self.runs.iter().map(|(_, n)| n).sum()
    }

    /// The leading rows that a backward is for.
    pub fn trained(&self) -> usize {
        self.trained
    }

    /// The slot and the rows of each run.
    fn ranges(&self) -> impl Iterator<Item = (Option<Slot>, std::ops::Range<usize>)> {
        let mut end = 0;
        self.runs.iter().map(move |(slot, n)| {
            let start = end;
            end += n;
            (*slot, start..end)
        })
    }
}

/// The adapters that the rows of a batch go through.
#[derive(Clone, Copy)]
pub struct Adapters<'a> {
    /// Where the factors are; absent where every row goes through the base.
    pub bank: Option<&'a AdapterBank>,
    /// Which row goes through which.
    pub rows: &'a Rows,
}

impl<'a> Adapters<'a> {
    /// No adapters.
    pub fn none(rows: &'a Rows) -> Self {
        Self { bank: None, rows }
    }

    /// Whether some row's adapter covers module `index`.
    pub fn cover(&self, index: usize) -> bool {
        self.bank.is_some_and(|b| b.layout.places[index].is_some())
    }

    /// What is added to the layer of module `index`.
    pub(super) fn of(&self, index: usize) -> Vec<Lora> {
        let Some(bank) = self.bank.filter(|b| b.layout.places[index].is_some()) else { return Vec::new() };
        let lora = |(slot, samples): (Option<Slot>, std::ops::Range<usize>)| {
            let Factor { a, b } = bank.factor(slot?, index)?;
            Some(Lora { samples, a, b, scale: bank.scale })
        };
        self.rows.ranges().filter_map(lora).collect()
    }

    /// The same adapters for the leading rows alone.
    pub fn trained(&self) -> Rows {
        Rows::all(Some(Slot::Theta), self.rows.trained())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<Module> {
        let module = |name: &str, inputs, outputs| Module { name: name.into(), inputs, outputs, trainable: true };
        vec![module("a", 3, 2), module("b", 5, 4), module("c", 2, 6)]
    }

    #[test]
    fn factors_lie_one_after_another_and_know_their_names() {
        let layout = Layout::new(&modules(), [Some(2), None, Some(1)]);
        assert_eq!(layout.len(), 2 * (3 + 2) + 2 + 6);
        let names: Vec<String> = layout.parameters(&modules()).into_iter().map(|(n, ..)| n).collect();
        assert_eq!(names, ["a.lora_A.weight", "a.lora_B.weight", "c.lora_A.weight", "c.lora_B.weight"]);
        assert_eq!(layout.name_of(&modules(), 7), ("a.lora_B.weight".into(), 1));
        assert_eq!(layout.name_of(&modules(), 12), ("c.lora_B.weight".into(), 0));
        assert!(layout.place(1).is_none());
    }

    #[test]
    fn a_modules_start_depends_on_its_name_and_not_on_what_else_is_trained() {
        let all = Layout::selected(&modules(), &[true; 3], 2);
        let one = Layout::selected(&modules(), &[false, true, false], 2);
        let [from_all, from_one] = [&all, &one].map(|layout| {
            let mut bank = AdapterBank::new(Arc::new(layout.clone()), 1.0);
            bank.set(Slot::Theta, AdapterBank::initial(layout, &modules(), 7, &Device::Cpu));
            bank.factor(Slot::Theta, 1).unwrap()
        });
        assert_eq!(from_all.a.host(), from_one.a.host());
        assert!(from_all.b.host().iter().all(|v| *v == 0.0));
        let renamed: Vec<Module> = modules().into_iter().map(|m| Module { name: m.name + "x", ..m }).collect();
        let other = AdapterBank::initial(&one, &renamed, 7, &Device::Cpu);
        assert_ne!(other.host()[..10], *from_one.a.host());
    }

    #[test]
    fn every_row_gets_the_factors_of_its_slot() {
        let layout = Arc::new(Layout::selected(&modules(), &[true; 3], 2));
        let mut bank = AdapterBank::new(layout.clone(), 2.0);
        bank.set(Slot::Theta, AdapterBank::initial(&layout, &modules(), 7, &Device::Cpu));
        bank.copy(Slot::Old, Slot::Theta);
        let rows = Rows::runs([(Some(Slot::Theta), 2), (None, 3), (Some(Slot::Reference), 0), (Some(Slot::Old), 1)]);
        assert_eq!((rows.count(), rows.trained()), (6, 2));
        let part = [(Some(Slot::Theta), 1), (None, 3)];
        assert_eq!(rows.slice(1..5), Rows::runs(part));
        let samples = |a: &Adapters| a.of(0).into_iter().map(|l| l.samples).collect::<Vec<_>>();
        assert_eq!(samples(&Adapters { bank: Some(&bank), rows: &rows }), [0..2, 5..6]);
        assert!(samples(&Adapters::none(&rows)).is_empty());
    }
}
