"""python3 -m unittest discover -s tools"""

import unittest

from nested.ledger import LOSSES, Ledger
from nested.looks import Look, look, verdict

REGISTERS = """RAX=0 RBX=0
RIP=ffffffff81c0a3eb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
"""
LAPIC = """Timer\t DCR=0x3 (divide by 16) initial_count = 221612 current_count = 0
ISR\t (none)
IRR\t 236
APR 0x00 TPR 0x10 DFR 0x0f LDR 0x01 PPR 0x10
"""


class Looks(unittest.TestCase):
    def test_a_halted_cpu_with_a_pending_vector_is_hung(self):
        one = look(REGISTERS, LAPIC)
        self.assertEqual(one, Look(0xFFFFFFFF81C0A3EB, True, True, 236, 0x10))
        self.assertIsNone(verdict([one] * 3))
        self.assertIn("236", verdict([one] * 4))

    def test_one_that_was_looked_at_between_an_interrupt_and_its_turn_is_not(self):
        self.assertIsNone(verdict([look(REGISTERS, LAPIC, used) for used in (1, 1.2, 1.4, 1.6)]))

    def test_an_idle_cpu_is_not(self):
        for idle in (look(REGISTERS, LAPIC.replace("236", "(none)")), look(REGISTERS, LAPIC.replace("PPR 0x10", "PPR 0xf0")),
                     look(REGISTERS.replace("00000246", "00000046"), LAPIC)):
            self.assertIsNone(verdict([idle] * 9))

    def test_a_cpu_that_moves_is_busy_and_one_that_does_not_is_lost(self):
        places = [look(REGISTERS.replace("HLT=1", "HLT=0").replace("a3eb", f"a3e{n}"), LAPIC) for n in range(9)]
        self.assertIsNone(verdict(places))
        self.assertIn("stays at", verdict([places[0], *[places[1]] * 4]))

    def test_a_monitor_without_answers(self):
        self.assertIsNone(verdict([look(None, None)]))
        self.assertIn("monitor", verdict([look(None, None), look("", "")]))


class Ledgers(unittest.TestCase):
    def test_what_passed_is_left_out_and_what_ran_runs_again(self):
        ledger = Ledger("QEMU x")
        for line in ("begin a", "end a pass 1.5", "begin b", "noise", "end", ""):
            self.assertIsNone(ledger.line(line))
        self.assertIn("in b (1 of", ledger.lost("hung"))
        self.assertEqual(ledger.finished(), ["a"])
        for line in ("begin b", "end b fail 2"):
            ledger.line(line)
        self.assertEqual((ledger.finished(), ledger.failed(), ledger.passed()), (["a", "b"], ["b"], 1))
        self.assertEqual(ledger.part("nested", 99.6), "part: nested tests=2 passed=1 failed=1 losses=1 seconds=100")

    def test_a_test_is_given_up_and_the_next_has_its_own_losses(self):
        ledger = Ledger("QEMU x")
        for count in range(LOSSES):
            ledger.line("begin a")
            told = ledger.lost("hung")
            self.assertEqual("given up" in told and "QEMU x" in told, count == LOSSES - 1)
        self.assertEqual((ledger.finished(), ledger.failed()), (["a"], ["a"]))
        self.assertTrue(ledger.may_go_on())
        ledger.line("begin b")
        self.assertIn("in b (1 of", ledger.lost("hung"))

    def test_a_lost_guest_is_a_loss(self):
        ledger = Ledger("QEMU x")
        ledger.line("begin a")
        self.assertIn("asm_exc", ledger.line("lost a asm_exc_page_fault"))
        ledger.lost("a guest")
        self.assertEqual((ledger.tests["a"].losses, ledger.finished()), (1, []))

    def test_hosts_that_never_come_up_end_the_run_and_one_that_works_between_them_does_not(self):
        ledger = Ledger("QEMU x")
        for _ in range(LOSSES - 1):
            ledger.lost("no boot")
        ledger.line("begin a")
        ledger.line("end a pass 1")
        ledger.lost("no boot")
        self.assertTrue(ledger.may_go_on())
        for _ in range(LOSSES - 1):
            ledger.lost("no boot")
        self.assertFalse(ledger.may_go_on())


if __name__ == "__main__":
    unittest.main()
