"""The gRPC server: answers requests, records interactions, takes feedback, follows releases.

Never imports policy, reward or learner: it applies what was learnt and learns nothing itself.
"""
