// Passages on the GPU: steps that follow each other without a launch between them. While one runs, the next is in the
// stream already and waits there for the token that the host chooses from the best logits.
#include "passage.h"

#include <chrono>

#include "kernels.h"
#include "mail.cuh"

namespace exl2::cuda {
namespace {

// A step does not wait longer: the program may have been stopped in a terminal, a debugger may let no two kernels be
// launched at once, and a GPU with a screen must not look dead.
constexpr uint64_t kPatience = 200'000'000;  // nanoseconds
constexpr uint64_t kMostMissed = 3;          // after so many steps in vain none is launched ahead
constexpr auto kUsual = std::chrono::seconds(2);  // longer than a step takes: from here on the GPU is asked how it is

__global__ void read_mail_kernel(Mail* mail, uint64_t number, int32_t* state) {
  const uint64_t begun = nanoseconds();
  while (read_word(&mail->asked) < number) {
    if (nanoseconds() - begun < kPatience) continue;
    write_word(&mail->passed[number % 2], number);
    return;  // the state is that of the step before
  }
  state[0] = mail->position;
  state[1] = mail->token;
}

uint64_t read_here(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

// The steps of one passage. One that still waits at its end is the one before once more, which changes nothing.
class Steps {
 public:
  Steps(const Writer& writer, cudaStream_t stream)
      : writer_(writer), mail_(*writer.mail), stream_(stream), given_(mail_.launched) {}
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  ~Steps() { tell(mail_.launched); }  // after an error, too, nothing is left waiting on the GPU

  // What the next step is to run. It is launched if it does not wait already, and one more if that may be `ahead`.
  void give(int64_t token, int64_t position, bool ahead) {
    mail_.token = static_cast<int32_t>(token);
    mail_.position = static_cast<int32_t>(position);
    tell(given_ + 1);
    // The first of all knows its token before it is launched: loading its kernels waits for what runs on the GPU.
    if (mail_.launched < given_) launch();
    if (ahead && mail_.missed < kMostMissed) launch();
  }

  bool has_next() const { return mail_.launched > given_; }

  // Waits for all: what still ran would write to memory that may soon belong to others.
  void finish() {
    tell(mail_.launched);
    wait();
  }

  // Until the step that was given its token last has answered. False: it had not waited for the token.
  bool wait() {
    auto patient_until = std::chrono::steady_clock::now() + kUsual;
    for (int round = 0; read_here(&mail_.answered) < given_; ++round) {
      if (round % 1024 != 0 || std::chrono::steady_clock::now() < patient_until) continue;
      patient_until += kUsual;
      const cudaError_t status = cudaStreamQuery(stream_);
      if (status != cudaErrorNotReady) check(status, "decode step");
    }
    const bool passed = read_here(&mail_.passed[given_ % 2]) == given_;
    mail_.missed += passed ? 1 : 0;
    return !passed;
  }

 private:
  void tell(uint64_t number) {
    given_ = number;
    __atomic_store_n(&mail_.asked, number, __ATOMIC_RELEASE);
  }

  void launch() {
    const uint64_t number = ++mail_.launched;
    read_mail_kernel<<<1, 1, 0, stream_>>>(&mail_, number, const_cast<int32_t*>(writer_.model.state));
    check(cudaGetLastError(), "read_mail");
    decode_step(writer_.model, writer_.gate_strips, 1, stream_);
    top_logits(writer_.model.logits, writer_.vocab, writer_.best, writer_.ids, writer_.values, stream_, &mail_, number);
  }

  const Writer& writer_;
  Mail& mail_;
  cudaStream_t stream_;
  uint64_t given_;  // steps that know their token
};

}  // namespace

int64_t mail_bytes() { return sizeof(Mail); }

int64_t write_passage(const Writer& writer, const Choosing& choosing, int64_t token, int64_t position,
                      const volatile uint8_t* cancel, int64_t* tokens, cudaStream_t stream) {
  const auto cancelled = [&] { return cancel != nullptr && *cancel != 0; };
  if (cancelled()) return 0;
  Chosen chosen(choosing, tokens);
  const bool complete = writer.best == writer.vocab;
  Steps steps(writer, stream);
  for (;; ++position) {
    do {
      steps.give(token, position, chosen.goes_on(1));
    } while (!steps.wait());
    token = sample_top(writer.values, writer.ids, writer.best, complete, writer.vocab, chosen.seen(), choosing.settings,
                       chosen.uniform());
    if (!chosen.add(token) || !steps.has_next() || cancelled()) break;
  }
  steps.finish();
  return chosen.count();
}

}  // namespace exl2::cuda
