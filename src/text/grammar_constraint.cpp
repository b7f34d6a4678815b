#include "text/grammar_constraint.h"

#include "base/check.h"

namespace glimpse {

GrammarConstraint::GrammarConstraint(std::shared_ptr<GrammarMasks> masks)
    : masks_(std::move(masks)), positions_(masks_->start()) {}

std::span<const uint32_t> GrammarConstraint::mask() {
  mask_ = masks_->mask(positions_);
  return *mask_;
}

void GrammarConstraint::accept(TokenId token) {
  if (!masks_->is_stop(token)) positions_ = masks_->after(positions_, token);
}

TriggeredConstraint::TriggeredConstraint(std::shared_ptr<GrammarMasks> masks, TokenId trigger,
                                         Passages passages)
    : masks_(std::move(masks)), trigger_(trigger), passages_(passages) {}

std::span<const uint32_t> TriggeredConstraint::mask() {
  if (phase_ == Phase::free) return {};
  mask_ = phase_ == Phase::ended ? masks_->stop_mask() : masks_->mask(positions_);
  return *mask_;
}

void TriggeredConstraint::accept(TokenId token) {
  if (phase_ == Phase::free && token == trigger_) {
    phase_ = Phase::passage;
    positions_ = masks_->start();
  } else if (phase_ == Phase::passage) {
    positions_ = masks_->after(positions_, token);
    if (GrammarMatcher::is_complete(positions_)) {
      phase_ = passages_ == Passages::at_most_one ? Phase::ended : Phase::free;
    }
  }
}

}  // namespace glimpse
