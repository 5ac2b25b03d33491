// Deals the trees of a step to ranks x micro steps: bins of at most `budget` tokens and about equal cost.
//
// The number of micro steps comes first: each one is a forward and backward of the whole model with its collectives,
// so it is the smallest that these can fit: trees by decreasing cost, each into the cheapest bin (LPT); where that
// breaks the token budget, best fit by decreasing size; for few trees also a search for exact fits. It finds the
// minimum for HH-RLHF pairs with packs up to 99.5% full. Then cost: the ranks of a micro step wait for the slowest, so
// trees are moved and exchanged between costly and cheap bins.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

#include "native.h"

namespace vdengine {
namespace {

constexpr int64_t kMaxMisfits = 64;           // full bins met while placing one tree before LPT gives up,
constexpr int64_t kMeanMisfits = 4;           // and on average
constexpr int64_t kExactFitTrees = 4096;      // above it, best fit is within a fraction of a percent of full bins
constexpr int64_t kExactFitSteps = 20000;     // search steps for the filling of one bin
constexpr int64_t kExchangeSteps = 20000000;  // pairs of trees weighed in one balancing: some 50 ms at most
constexpr size_t kPartners = 64;              // cheapest bins that a costly one is compared with
constexpr int kRounds = 4;                    // of setting targets and balancing anew, up to
constexpr size_t kRoundsBins = 16384;         // so many bins: with more, one long tree hardly matters

struct Bin {
    double cost = 0;
    double target = 0;  // balance() evens out cost - target
    int64_t tokens = 0;
    std::vector<int32_t> trees;

    double excess() const { return cost - target; }
};

struct Problem {
    const int64_t* tokens;
    const double* cost;
    int64_t n;
    int64_t ranks;
    int64_t budget;
    int64_t smallest;  // tokens of the smallest tree: a bin with less room is done

    void put(Bin& bin, int32_t tree) const {
        bin.trees.push_back(tree);
        bin.tokens += tokens[tree];
        bin.cost += cost[tree];
    }
    int64_t micro_steps_for(int64_t bins) const { return std::max<int64_t>(1, (bins + ranks - 1) / ranks); }
};

// A bound on the number of bins (Martello and Toth's L2): for each size a, trees above budget - a share a bin with
// nothing of size a or more, those above half a budget not with one another, and the rest of size >= a must fit
// beside the latter. `sizes` ascending.
int64_t fewest_bins(const std::vector<int64_t>& sizes, int64_t budget) {
    std::vector<int64_t> before(sizes.size() + 1, 0);
    std::partial_sum(sizes.begin(), sizes.end(), before.begin() + 1);
    const auto above = [&](int64_t size) {
        return std::upper_bound(sizes.begin(), sizes.end(), size) - sizes.begin();
    };
    const int64_t n = static_cast<int64_t>(sizes.size()), half = above(budget / 2);
    int64_t best = (before[n] + budget - 1) / budget, previous = -1;
    for (int64_t i = 0; i < half; ++i) {
        if (sizes[i] == previous) continue;
        previous = sizes[i];
        const int64_t alone = above(budget - sizes[i]);
        const int64_t room = (alone - half) * budget - (before[alone] - before[half]);
        const int64_t rest = before[half] - before[i] - room;
        best = std::max(best, n - half + std::max<int64_t>(0, (rest + budget - 1) / budget));
    }
    return std::max(best, n - half);
}

// Each tree, by decreasing cost, to the cheapest bin that has room. False when one finds no room.
bool deal_by_cost(const Problem& p, const std::vector<int32_t>& by_cost, std::vector<Bin>& bins) {
    using Entry = std::pair<std::pair<double, int64_t>, int32_t>;  // cost, trees, bin: empty bins come first
    const std::greater<Entry> later;
    std::vector<Entry> heap, misfits;
    int64_t misfits_left = kMeanMisfits * p.n + kMaxMisfits;
    for (size_t b = 0; b < bins.size(); ++b) {
        bins[b] = Bin{};
        heap.push_back({{0.0, 0}, static_cast<int32_t>(b)});
    }
    for (const int32_t tree : by_cost) {
        misfits.clear();
        for (;;) {
            if (heap.empty() || static_cast<int64_t>(misfits.size()) > kMaxMisfits || misfits_left < 0) return false;
            std::pop_heap(heap.begin(), heap.end(), later);
            if (bins[heap.back().second].tokens + p.tokens[tree] <= p.budget) break;
            misfits.push_back(heap.back());
            heap.pop_back();
            --misfits_left;
        }
        Bin& bin = bins[heap.back().second];
        p.put(bin, tree);
        if (p.budget - bin.tokens >= p.smallest) {
            heap.back().first = {bin.cost, static_cast<int64_t>(bin.trees.size())};
            std::push_heap(heap.begin(), heap.end(), later);
        } else {
            heap.pop_back();
        }
        for (const Entry& entry : misfits) {
            heap.push_back(entry);
            std::push_heap(heap.begin(), heap.end(), later);
        }
    }
    return true;
}

// Best fit decreasing: each tree, by decreasing size, to the fullest bin that has room, else to a new one.
std::vector<Bin> fit_best(const Problem& p, const std::vector<int32_t>& by_size) {
    std::vector<Bin> bins;
    std::set<std::pair<int64_t, int32_t>> room;  // free tokens, bin
    for (const int32_t tree : by_size) {
        const auto found = room.lower_bound({p.tokens[tree], 0});
        int32_t b = static_cast<int32_t>(bins.size());
        if (found == room.end()) {
            bins.emplace_back();
        } else {
            b = found->second;
            room.erase(found);
        }
        p.put(bins[b], tree);
        if (p.budget - bins[b].tokens >= p.smallest) room.insert({p.budget - bins[b].tokens, b});
    }
    return bins;
}

// Fills one bin after another as full as a bounded search can (minimum bin slack). `left`: by decreasing size.
class ExactFit {
  public:
    ExactFit(const Problem& p, std::vector<int32_t> by_size) : p_(p), left_(std::move(by_size)) {}

    std::vector<Bin> run() {
        std::vector<Bin> bins;
        while (!left_.empty()) {
            best_gap_ = p_.budget + 1;
            steps_ = 0;
            chosen_ = {0};  // the largest tree left: it is the hardest to place later
            extend(1, p_.budget - p_.tokens[left_[0]]);
            bins.emplace_back();
            std::vector<int32_t> rest;
            size_t next = 0;
            for (size_t i = 0; i < left_.size(); ++i) {
                if (next < best_.size() && best_[next] == i) {
                    p_.put(bins.back(), left_[i]);
                    ++next;
                } else {
                    rest.push_back(left_[i]);
                }
            }
            left_.swap(rest);
        }
        return bins;
    }

  private:
    void extend(size_t from, int64_t gap) {
        if (gap < best_gap_) {
            best_gap_ = gap;
            best_ = chosen_;
        }
        for (size_t i = from; i < left_.size() && best_gap_ > 0 && steps_ < kExactFitSteps; ++i) {
            ++steps_;
            const int64_t size = p_.tokens[left_[i]];
            if (size > gap) continue;
            if (i > from && size == p_.tokens[left_[i - 1]]) continue;  // the same choice as the one before
            chosen_.push_back(i);
            extend(i + 1, gap - size);
            chosen_.pop_back();
        }
    }

    const Problem& p_;
    std::vector<int32_t> left_;
    std::vector<size_t> chosen_, best_;
    int64_t best_gap_ = 0, steps_ = 0;
};

// What to take from a costly bin (index i) and give for it from a cheap one (index j, -1: nothing).
struct Exchange {
    int i = -1;
    int j = -1;
    double gain = 0;
    size_t cheap = 0;
};

// The exchange that brings the two bins' excesses (cost - target) closest together, if better than `best`. Moving a
// net cost d over a gap g lowers their sum of squares by 2 d (g - d).
void weigh(const Problem& p, const std::vector<Bin>& bins, size_t costly, size_t cheap, Exchange& best,
           int64_t& steps) {
    const Bin &high = bins[costly], &low = bins[cheap];
    const double gap = high.excess() - low.excess();
    const auto consider = [&](int i, int j, double d) {
        const double gain = d * (gap - d);
        if (gain > best.gain) best = {i, j, gain, cheap};
    };
    const bool can_move = high.trees.size() > 1;
    for (size_t i = 0; i < high.trees.size(); ++i) {
        const int64_t size = p.tokens[high.trees[i]];
        const double cost = p.cost[high.trees[i]];
        if (can_move && low.tokens + size <= p.budget) consider(static_cast<int>(i), -1, cost);
        for (size_t j = 0; j < low.trees.size(); ++j) {
            const int64_t change = size - p.tokens[low.trees[j]];
            if (low.tokens + change <= p.budget && high.tokens - change <= p.budget)
                consider(static_cast<int>(i), static_cast<int>(j), cost - p.cost[low.trees[j]]);
        }
    }
    steps += static_cast<int64_t>(high.trees.size() * (low.trees.size() + 1));
}

// Evens out the bins' excesses: the one with the largest gives to those with the smallest, while that helps.
void balance(const Problem& p, std::vector<Bin>& bins) {
    std::set<std::pair<double, size_t>> all, open;  // by excess; open: bins that may still be improved
    double total = 0;
    for (size_t b = 0; b < bins.size(); ++b) {
        all.insert({bins[b].excess(), b});
        total += bins[b].cost;
    }
    open = all;
    // Below this an exchange is not worth its time: a thousandth of a bin off the gap.
    const double mean = total / static_cast<double>(bins.size());
    const double least_gain = mean * mean * 1e-6;
    const auto update = [&](size_t b, int32_t out, int32_t in) {
        all.erase({bins[b].excess(), b});
        open.erase({bins[b].excess(), b});
        Bin& bin = bins[b];
        if (out >= 0) {
            bin.trees.erase(std::find(bin.trees.begin(), bin.trees.end(), out));
            bin.tokens -= p.tokens[out];
        }
        if (in >= 0) {
            bin.trees.push_back(in);
            bin.tokens += p.tokens[in];
        }
        bin.cost = 0;  // summed anew, so that rounding does not pile up
        for (const int32_t tree : bin.trees) bin.cost += p.cost[tree];
        all.insert({bin.excess(), b});
        open.insert({bin.excess(), b});
    };
    for (int64_t steps = 0; steps < kExchangeSteps && !open.empty();) {
        const auto [excess, costly] = *open.rbegin();
        Exchange best;
        best.gain = least_gain;
        size_t seen = 0;
        for (auto cheap = all.begin(); cheap != all.end() && cheap->first < excess && seen < kPartners; ++cheap, ++seen)
            weigh(p, bins, costly, cheap->second, best, steps);
        steps += 1;
        if (best.i < 0) {
            open.erase({excess, costly});
            continue;
        }
        const int32_t out = bins[costly].trees[best.i];
        const int32_t in = best.j < 0 ? -1 : bins[best.cheap].trees[best.j];
        update(costly, out, in);
        update(best.cheap, in, out);
    }
}

// Sorts bins by decreasing cost, so that each run of `ranks` is a micro step, and returns the time of the step: the sum
// of the costliest bin of each.
double sort_into_micro_steps(const Problem& p, std::vector<Bin>& bins) {
    std::stable_sort(bins.begin(), bins.end(), [](const Bin& a, const Bin& b) { return a.cost > b.cost; });
    double time = 0;
    for (size_t b = 0; b < bins.size(); b += p.ranks) time += bins[b].cost;
    return time;
}

// Balances the ranks within each micro step. First all bins alike. Where that leaves a micro step with a bin that
// cannot be cheaper (one long tree), its other ranks wait, so they may take as much from the later micro steps: they
// get that bin's cost as their target.
void balance_micro_steps(const Problem& p, std::vector<Bin>& bins) {
    balance(p, bins);
    double time = sort_into_micro_steps(p, bins);
    if (bins.size() > kRoundsBins) return;
    for (int round = 0; round < kRounds; ++round) {
        std::vector<Bin> trial = bins;
        double left = 0;
        for (const Bin& bin : trial) left += bin.cost;
        const double mean = left / static_cast<double>(trial.size());
        if (time <= mean * static_cast<double>(trial.size() / p.ranks) * 1.002) return;
        for (size_t b = 0; b < trial.size(); b += p.ranks) {
            const double fair = std::max(0.0, left) / static_cast<double>(trial.size() - b);
            const double target = std::max(trial[b].cost, fair);
            for (int64_t r = 0; r < p.ranks; ++r) trial[b + r].target = target;
            left -= target * static_cast<double>(p.ranks);
        }
        balance(p, trial);
        const double found = sort_into_micro_steps(p, trial);
        if (found >= time) return;
        time = found;
        bins.swap(trial);
    }
}

// Tight packings may leave bins empty: give each the cheapest tree of the costliest bin that can spare one.
void fill_empty(const Problem& p, std::vector<Bin>& bins) {
    for (Bin& empty : bins) {
        if (!empty.trees.empty()) continue;
        Bin* from = nullptr;
        for (Bin& bin : bins)
            if (bin.trees.size() > 1 && (!from || bin.cost > from->cost)) from = &bin;
        if (!from) return;
        const auto tree = std::min_element(from->trees.begin(), from->trees.end(), [&](int32_t a, int32_t b) {
            return std::make_pair(p.cost[a], a) < std::make_pair(p.cost[b], b);
        });
        const int32_t moved = *tree;
        from->trees.erase(tree);
        from->tokens -= p.tokens[moved];
        from->cost -= p.cost[moved];
        p.put(empty, moved);
    }
}

// Indexes by decreasing key, ascending among equals.
template <typename Key>
std::vector<int32_t> decreasing(const Key* keys, int64_t n) {
    std::vector<std::pair<Key, int32_t>> sorted(n);
    for (int64_t i = 0; i < n; ++i) sorted[i] = {-keys[i], static_cast<int32_t>(i)};
    std::sort(sorted.begin(), sorted.end());
    std::vector<int32_t> order(n);
    for (int64_t i = 0; i < n; ++i) order[i] = sorted[i].second;
    return order;
}

// The fewest micro steps found, with its bins.
std::vector<Bin> pack(const Problem& p, int64_t total) {
    const std::vector<int32_t> by_cost = decreasing(p.cost, p.n);
    std::vector<Bin> bins;
    const auto deal = [&](int64_t micro_steps) {
        bins.assign(p.ranks * micro_steps, Bin{});
        return deal_by_cost(p, by_cost, bins);
    };
    int64_t least = p.micro_steps_for((total + p.budget - 1) / p.budget);
    if (deal(least)) return bins;

    const std::vector<int32_t> by_size = decreasing(p.tokens, p.n);
    std::vector<int64_t> sizes(p.n);
    for (int64_t i = 0; i < p.n; ++i) sizes[i] = p.tokens[by_size[p.n - 1 - i]];
    const int64_t bound = p.micro_steps_for(fewest_bins(sizes, p.budget));
    if (bound > least && deal(bound)) return bins;
    least = bound;

    std::vector<Bin> tight = fit_best(p, by_size);
    int64_t most = p.micro_steps_for(static_cast<int64_t>(tight.size()));
    if (most > least && p.n <= kExactFitTrees) {
        std::vector<Bin> tighter = ExactFit(p, by_size).run();
        if (tighter.size() < tight.size()) tight.swap(tighter);
        most = p.micro_steps_for(static_cast<int64_t>(tight.size()));
        for (int64_t m = least + 1; m < most; ++m)
            if (deal(m)) return bins;
    }
    if (most > least && deal(most)) return bins;
    tight.resize(p.ranks * most);
    return tight;
}

}  // namespace

int64_t plan_packs(const int64_t* num_tokens, const double* cost, int64_t n, int64_t ranks, int64_t budget,
                   int32_t* bin_of_tree) {
    if (ranks < 1) throw std::invalid_argument("ranks must be >= 1, got " + std::to_string(ranks));
    if (budget < 1) throw std::invalid_argument("the token budget must be >= 1, got " + std::to_string(budget));
    if (budget > INT32_MAX)  // no pack can have more, and sums of tokens stay far from overflowing
        throw std::invalid_argument("the token budget must be at most 2^31 - 1, got " + std::to_string(budget));
    if (n > (1 << 30) || ranks > (1 << 20)) throw std::invalid_argument("more than 2^30 trees or 2^20 ranks");
    int64_t total = 0;
    double total_cost = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (num_tokens[i] < 1 || num_tokens[i] > budget)
            throw std::invalid_argument("tree " + std::to_string(i) + " has " + std::to_string(num_tokens[i]) +
                                        " tokens; allowed are 1 to the budget of one pack, " +
                                        std::to_string(budget));
        if (!(cost[i] >= 0) || std::isinf(cost[i]))
            throw std::invalid_argument("the cost of tree " + std::to_string(i) + " is " + std::to_string(cost[i]) +
                                        "; it must be finite and >= 0");
        total += num_tokens[i];
        total_cost += cost[i];
    }
    // Costs of bins are sorted and subtracted: an infinite one would make NaN, which has no order.
    if (std::isinf(total_cost)) throw std::invalid_argument("the costs sum to more than a float64 holds");
    if (n == 0) return 0;

    const Problem p{num_tokens, cost, n, ranks, budget, *std::min_element(num_tokens, num_tokens + n)};
    std::vector<Bin> bins = pack(p, total);
    fill_empty(p, bins);
    balance_micro_steps(p, bins);

    // The costliest micro step comes first, so that a budget too large for the memory shows at once. Every other one
    // runs backwards over the ranks, which evens out their totals.
    for (int64_t k = 0; k < static_cast<int64_t>(bins.size()); ++k) {
        const int64_t step = k / ranks, place = k % ranks;
        const int64_t bin = step * ranks + (step % 2 ? ranks - 1 - place : place);
        for (const int32_t tree : bins[k].trees) bin_of_tree[tree] = static_cast<int32_t>(bin);
    }
    return static_cast<int64_t>(bins.size()) / ranks;
}

}  // namespace vdengine
